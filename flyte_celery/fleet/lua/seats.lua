-- One look of one worker at its fleet: it says what it has and wants, and hears what all have and what it may have.
--
-- A seat is the right to run one replica. Seats are counted per worker; a worker's count is what it said it has, and
-- what it was given on top. It holds while the worker's lease does, so who is cut off must end its replicas by then.
-- Sums are kept, not made, so that a look costs the same however many workers there are.
--
-- KEYS  1 workers (sorted set: worker -> end of its lease in ms, see lease.lua)
--       2 fleet (hash: sums; g:N workers of generation N; d:DEFINITION its generation; r:N one of its replicas has been
--         ready; trial the newest generation, while it has yet to show that, see below)
--       3 reports (hash: worker -> its numbers)         4 owners (sorted set: worker -> end of its lease, maybe older)
--       5 live (sorted set: worker -> its replicas that do not drain)
--       6 rooms (sorted set: worker -> replicas that its host has room for besides)
--       7 targets (sorted set: worker -> replicas that it finds right for the whole fleet)
--       8 orders of operators (hash)   9 drained hosts (hash)   10 pulse (see pulse.lua)   11.. priority lists
-- ARGV  1 "report", "leave" or "look" (of a client without seats)   2 now in ms, or "" for the server's clock
--       3 worker   4 ms of lease   5 definition   6 host   7 most replicas   8 slots of a replica
--       9 replicas that exist   10 of these, such as do not drain   11 such as drain and can be taken back
--       12 waiting   13 running   14 suspended tasks   15 starting   16 room   17 target   18 proof of life
--       19 millicores   20 megabytes of a replica   21 millicores   22 megabytes of the host, 0 for no bound
--       23 first part of the key of a host's shares   24 seconds to keep all this for
--       25 replicas that are ready   26 whether a replica may be started that takes no task yet: no start failed lately
--
-- Returns -1 when the worker has lost its lease, else the numbers of `seats.View` in their order.

--include pulse

--- Milliseconds for which roomier hosts may take what is missing before others do.
local COURTESY = 1500
--- Milliseconds for which an order to prewarm is told to workers.
local PREWARM = 60000
--- Messages of the queue that are looked at to tell what they are for, and their bytes, at most.
local LOOKED_AT, LOOKED_AT_BYTES = 1000, 512 * 1024
--- Milliseconds to rest after that, for each 1000 of them: so it takes some hundredths of the server's time at most,
--- however many workers ask, and some thousandths where there is work for all replicas that may be.
local REST, LONG_REST = 200, 1000
--- How often a definition that has yet to show a ready replica may ask the one that serves to make way.
local MOST_ASKED = 3
--- Milliseconds after which what nobody has done is not waited for.
local UNHEARD = 5000

--include front

local mode, at, worker = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local now = at
if not now then
    local clock = redis.call('TIME')
    now = clock[1] * 1000 + math.floor(clock[2] / 1000)
end

local SUMS = {'seats', 'live', 'waiting', 'running', 'suspended', 'starting'}
local kept = redis.call('HMGET', KEYS[2], 'seats', 'live', 'waiting', 'running', 'suspended', 'starting',
    'current', 'newest', 'short_since', 'hold_until', 'front', 'trial')
local sum = {}
for i, name in ipairs(SUMS) do
    sum[name] = tonumber(kept[i] or 0)
end
local current, newest = tonumber(kept[7] or 0), tonumber(kept[8] or 0)
local short_since, hold_until = tonumber(kept[9] or 0), tonumber(kept[10] or 0)

-- A definition serves when one of its replicas has been ready. Until then one of its workers, the prober, may have one
-- replica, which takes no task. Where it has no seat or no room for it, it asks: for any seat ('*'), or for room on its
-- host; '+' says that its replica has a seat that others could do with. '-' stands for nobody and nothing.
local trial, asked, since, most_before, prober, asks, made_way = 0, 0, 0, 0, '-', '-', '-'
if kept[12] then
    trial, asked, since, most_before, prober, asks, made_way = string.match(kept[12],
        '^(%d+) (%d+) (%d+) (%d+)\n(.+)\n(.+)\n(.+)$')  -- names may have spaces
    trial, asked, since, most_before = tonumber(trial), tonumber(asked), tonumber(since), tonumber(most_before)
end

--- The numbers of a report: seats, live, waiting, running, suspended, starting, generation, definition, host, proof.
local function numbers_of(text)
    local found = {}
    for word in string.gmatch(text, '%S+') do
        found[#found + 1] = word
    end
    return found
end

local function add(report, sign)
    for i, name in ipairs(SUMS) do
        sum[name] = sum[name] + sign * tonumber(report[i])
    end
end

local function stop_asking()
    asks, made_way = '-', '-'
end

local function forget_generation(number, definition)
    if redis.call('HINCRBY', KEYS[2], 'g:' .. number, -1) > 0 then
        return
    end
    redis.call('HDEL', KEYS[2], 'g:' .. number, 'r:' .. number, 'd:' .. definition)
    number = tonumber(number)
    if number ~= current and number ~= trial then
        return
    end
    local newest_left, newest_shown = 0, 0
    for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
        newest_left = math.max(newest_left, tonumber(string.match(field, '^g:(%d+)$') or 0))
        newest_shown = math.max(newest_shown, tonumber(string.match(field, '^r:(%d+)$') or 0))
    end
    if number == current then
        current = newest_shown > 0 and newest_shown or newest_left
    end
    newest_left = newest_left > current and newest_left or 0
    if newest_left ~= trial then
        trial, asked, prober = newest_left, MOST_ASKED, '-'  -- it was tried when it came
        stop_asking()
    end
end

local function drop(member)
    local text = redis.call('HGET', KEYS[3], member)
    if text then
        local report = numbers_of(text)
        add(report, -1)
        forget_generation(report[7], report[8])
        redis.call('HDEL', ARGV[23] .. report[9], member)
        redis.call('HDEL', KEYS[3], member)
    end
    for key = 4, 7 do
        redis.call('ZREM', KEYS[key], member)
    end
end

local function save()
    if redis.call('ZCARD', KEYS[4]) == 0 then
        redis.call('DEL', KEYS[2])
        return
    end
    redis.call('HSET', KEYS[2], 'seats', sum.seats, 'live', sum.live, 'waiting', sum.waiting, 'running', sum.running,
        'suspended', sum.suspended, 'starting', sum.starting, 'current', current, 'newest', newest,
        'short_since', short_since, 'hold_until', hold_until)
    if trial > 0 then
        redis.call('HSET', KEYS[2], 'trial', string.format('%d %d %d %d\n%s\n%s\n%s', trial, asked, since, most_before,
            prober, asks, made_way))
    elseif kept[12] then
        redis.call('HDEL', KEYS[2], 'trial')
    end
end

local function asks_for_room()
    return not string.find('-+*', asks, 1, true)
end

--- The numbers of the prober; without a worker in that place nothing is asked for.
local function of_prober()
    local text = prober ~= '-' and redis.call('HGET', KEYS[3], prober)
    if text then
        return numbers_of(text)
    end
    prober = '-'
    stop_asking()
end

--- Of the replicas that all have, the one that takes no task yet.
local function on_trial()
    local report = trial > 0 and of_prober()
    return report and tonumber(report[2]) or 0
end

--- Whether a worker has replicas that drain.
local function drains(member)
    local text = redis.call('HGET', KEYS[3], member)
    local report = text and numbers_of(text)
    return report and tonumber(report[1]) > tonumber(report[2])
end

if mode == 'leave' then
    drop(worker)
    save()
    return 0
end

if mode == 'report' then
    local lease = redis.call('ZSCORE', KEYS[1], worker)
    if not lease or tonumber(lease) <= 0 then
        drop(worker)
        save()
        return -1
    end
    redis.call('ZADD', KEYS[1], now + ARGV[4], worker)
    redis.call('ZADD', KEYS[4], now + ARGV[4], worker)
end

-- Seats of workers whose lease is over are free, but for those who are awaited.
local awaited = awaited_until(KEYS[10], now, mode == 'report')
if now >= awaited then
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 100)) do
        local lease = tonumber(redis.call('ZSCORE', KEYS[1], member) or 0)
        if lease > now then
            redis.call('ZADD', KEYS[4], lease, member)
        else
            drop(member)
            -- With its seats goes the lease: what it has sent before, and comes late, must not take them again.
            if lease > 0 then
                redis.call('ZADD', KEYS[1], -now, member)
            end
        end
    end
end

local orders = redis.call('HMGET', KEYS[8], 'min', 'max', 'paused', 'drained', 'prewarm', 'prewarm_id')
if orders[6] and math.abs(now - tonumber(orders[6])) > PREWARM then
    redis.call('HDEL', KEYS[8], 'prewarm', 'prewarm_id')
    orders[5], orders[6] = nil, nil
end
local given, to_drain, seats, generation = 0, 0, 0, 0
local highest = tonumber(orders[2] or ARGV[7])
local flags = (orders[3] and 1 or 0) + (orders[4] and 2 or 0)

if mode == 'report' then
    if redis.call('HEXISTS', KEYS[9], ARGV[6]) == 1 then
        flags = flags + 4
    end
    local had = redis.call('HGET', KEYS[3], worker)
    local known = tonumber(redis.call('HGET', KEYS[2], 'd:' .. ARGV[5]) or 0)
    local old = had and numbers_of(had)
    if old and old[8] == ARGV[5] then
        generation = tonumber(old[7])
    else
        if old then
            forget_generation(old[7], old[8])
        end
        if known == 0 then
            newest = newest + 1
            known = newest
            redis.call('HSET', KEYS[2], 'd:' .. ARGV[5], known)
        end
        generation = known
        redis.call('HINCRBY', KEYS[2], 'g:' .. generation, 1)
        if current == 0 then
            current = generation
        elseif generation > trial and generation > current then
            trial, asked = generation, 0
            stop_asking()
        elseif generation == trial then
            asked = math.min(asked, MOST_ASKED - 1)  -- a worker more is worth another attempt
        end
    end
    if tonumber(ARGV[25]) > 0 then
        redis.call('HSETNX', KEYS[2], 'r:' .. generation, 1)
        if generation > current then
            current = generation
            trial = trial > current and trial or 0
            stop_asking()
            prober = '-'
        end
    end
    local may_serve = generation == current and flags < 2
    local exist, live, revivable = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
    local room, target = tonumber(ARGV[16]), may_serve and tonumber(ARGV[17]) or 0
    -- What workers of all environments have started on this host bounds its room.
    local shares = ARGV[23] .. ARGV[6]
    local cores, memory, host_cores, host_memory = tonumber(ARGV[19]), tonumber(ARGV[20]), tonumber(ARGV[21]),
        tonumber(ARGV[22])
    if room > 0 and cores + memory > 0 then
        local taken_cores, taken_memory = 0, 0
        local found = redis.call('HGETALL', shares)
        for i = 1, #found, 2 do
            if found[i] ~= worker then
                local lease = tonumber(redis.call('ZSCORE', KEYS[1], found[i]) or 0)
                if lease > now or (lease > 0 and now < awaited) then
                    local of_cores, of_memory = string.match(found[i + 1], '^(%d+) (%d+)$')
                    taken_cores, taken_memory = taken_cores + of_cores, taken_memory + of_memory
                else
                    redis.call('HDEL', shares, found[i])
                end
            end
        end
        local fits = room
        if host_cores > 0 and cores > 0 then
            fits = math.min(fits, math.floor((host_cores - taken_cores) / cores) - exist)
        end
        if host_memory > 0 and memory > 0 then
            fits = math.min(fits, math.floor((host_memory - taken_memory) / memory) - exist)
        end
        if exist == 0 and taken_cores == 0 and taken_memory == 0 then
            fits = math.max(fits, 1)  -- alone, one that is too large for the host is run all the same
        end
        room = math.max(0, fits)
    end
    if old then
        add(old, -1)
    end
    -- It has more than is known of: the server has forgotten. Others may not have been heard yet.
    if exist > (old and tonumber(old[1]) or 0) then
        hold_until = now + COURTESY
    end
    sum.seats, sum.live = sum.seats + exist, sum.live + live

    if target == 0 then redis.call('ZREM', KEYS[7], worker) else redis.call('ZADD', KEYS[7], target, worker) end
    local top = redis.call('ZREVRANGE', KEYS[7], 0, 0, 'WITHSCORES')
    local wanted = math.min(highest, tonumber(top[2] or 0))
    if may_serve and trial > 0 then
        most_before = tonumber(ARGV[7])
    end
    local apart = prober == worker and live or on_trial()
    if asks == '*' or made_way ~= '-' then
        wanted = math.min(highest - 1, wanted)
    end
    local missing = wanted - (sum.live - apart)

    if generation == trial and flags < 2 then
        -- Where others were asked for room on a host and had none, a worker on another host may try.
        if prober == '-' or (prober ~= worker and asks_for_room() and made_way == '-' and room > 0) then
            prober = worker
            stop_asking()
        end
        -- Until it serves, the policy before it holds as well; what operators order holds for both.
        local most = orders[2] and highest or math.max(highest, most_before)
        local free = most - sum.seats
        local missed = math.min(orders[2] and highest or most_before, tonumber(top[2] or 0)) - (sum.live - apart)
        if prober ~= worker then
            to_drain = live
        elseif exist > 0 then
            -- A seat that nobody missed when it was given is given back when somebody does.
            to_drain = asks ~= '+' and free <= 0 and missed > 0 and live or 0
        elseif ARGV[26] == '0' or now < hold_until then
            prober = '-'
            stop_asking()
        elseif room > 0 and free > 0 and (asks == '*' or asks_for_room() or asked < MOST_ASKED or free > missed) then
            local costs = free <= missed
            if costs and asks ~= '*' and not asks_for_room() then
                asked = asked + 1
            end
            given = 1
            asks, made_way = costs and '+' or '-', '-'
        else
            local ask = room > 0 and '*' or ARGV[6]
            local unheard = asks == ARGV[6] and (made_way == '-' and now - since > UNHEARD
                or made_way ~= '-' and not drains(made_way))
            if asks ~= ask or unheard then
                stop_asking()
                if asked < MOST_ASKED and most > 0 then
                    asked, since, asks = asked + 1, now, ask
                else
                    prober = '-'
                end
            end
        end
    elseif not may_serve then
        to_drain = live
        if prober == worker then
            prober = '-'
            stop_asking()
        end
    elseif asks == ARGV[6] and exist > 0 then
        if made_way == '-' and live > 0 and exist == live then
            to_drain, made_way = 1, worker
        end
    elseif missing > 0 and now >= hold_until then
        local free = math.max(0, highest - sum.seats)
        local most = math.min(missing, revivable + math.min(free, room))
        local others = redis.call('ZCARD', KEYS[4]) - 1
        if short_since == 0 then
            short_since = now
        end
        if most > 0 and others > 0 and now - short_since < COURTESY then
            -- The tasks that it has come first; then one seat after the other goes to the roomiest host.
            local own = math.ceil((ARGV[12] + ARGV[13]) / ARGV[8]) - live
            local rooms = redis.call('ZREVRANGE', KEYS[6], 0, 15, 'WITHSCORES')
            local left = {}
            for i = 1, #rooms, 2 do
                if rooms[i] ~= worker then
                    left[#left + 1] = tonumber(rooms[i + 1])
                end
            end
            local mine, for_me = revivable + room, 0
            for _ = 1, math.min(missing, free + revivable) do
                local best = 0
                for i, each in ipairs(left) do
                    if best == 0 or each > left[best] then
                        best = i
                    end
                end
                if best == 0 or mine >= left[best] then
                    mine, for_me = mine - 1, for_me + 1
                else
                    left[best] = left[best] - 1
                end
            end
            most = math.min(most, math.max(own, for_me))
        end
        given = math.max(0, most)
    elseif missing < 0 and live > 0 then
        -- The host with the fewest lets go: in the end hosts are free.
        local fewest = redis.call('ZRANGEBYSCORE', KEYS[5], 1, '+inf', 'LIMIT', 0, 1)[1]
        local fewer = fewest and fewest ~= worker and tonumber(redis.call('ZSCORE', KEYS[5], fewest)) <= live
        to_drain = fewer and 0 or math.min(-missing, live)
    end

    local new = math.max(0, given - revivable)
    if cores + memory > 0 then
        redis.call('HSET', shares, worker, string.format('%d %d', (exist + new) * cores, (exist + new) * memory))
        redis.call('EXPIRE', shares, 86400)
    end

    seats = exist + new
    live = live + given - to_drain
    sum.seats, sum.live = sum.seats + new, sum.live + given - to_drain
    if may_serve and wanted <= sum.live - apart then
        short_since = 0
    end
    sum.waiting, sum.running = sum.waiting + ARGV[12], sum.running + ARGV[13]
    sum.suspended, sum.starting = sum.suspended + ARGV[14], sum.starting + ARGV[15]
    redis.call('HSET', KEYS[3], worker, table.concat({seats, live, ARGV[12], ARGV[13], ARGV[14], ARGV[15], generation,
        ARGV[5], ARGV[6], ARGV[18]}, ' '))
    if live == 0 or not may_serve then redis.call('ZREM', KEYS[5], worker) else redis.call('ZADD', KEYS[5], live, worker) end
    room = may_serve and math.max(0, room - new) + math.max(0, revivable - given) or 0
    if room == 0 then redis.call('ZREM', KEYS[6], worker) else redis.call('ZADD', KEYS[6], room, worker) end
    for key = 2, 7 do
        redis.call('EXPIRE', KEYS[key], ARGV[24])
    end
end

local ready = 0
for list = 11, #KEYS do
    ready = ready + redis.call('LLEN', KEYS[list])
end

-- Calls with overrides wait in the same queue, and want none of these replicas. They are told apart in front of the
-- queue, at first until there is work for all replicas that may be. What is further behind is taken for the like of it.
local beside = 0
if ready > 0 then
    local enough = highest * ARGV[8] - sum.waiting - sum.running
    local rests_until, seen, others = string.match(kept[11] or '', '^(%d+) (%d+) (%d+)$')
    if not rests_until or now >= tonumber(rests_until) then
        local own = 0
        others = 0
        seen = walk_front(11, LOOKED_AT, LOOKED_AT_BYTES, function(message)
            if is_beside(message) then
                others = others + 1
            else
                own = own + 1
            end
            return enough > 0 and own >= enough
        end)
        local rests = math.floor(seen * (enough > 0 and REST or LONG_REST) / 1000)
        redis.call('HSET', KEYS[2], 'front', string.format('%d %d %d', now + rests, seen, others))
    end
    beside = math.floor(ready * others / seen)
end
save()

local top = redis.call('ZREVRANGE', KEYS[7], 0, 0, 'WITHSCORES')
local apart = on_trial()
if prober == worker then
    flags = flags + 8
end
return {seats, given, to_drain, ready, beside, sum.waiting, sum.running, sum.suspended, sum.starting, sum.seats,
    sum.live - apart, math.min(highest, tonumber(top[2] or 0)), redis.call('ZCARD', KEYS[4]), generation, current,
    trial, apart, tonumber(orders[1] or -1), tonumber(orders[2] or -1), flags, tonumber(orders[5] or 0),
    tonumber(orders[6] or 0)}
