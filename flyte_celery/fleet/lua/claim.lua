-- Move messages from a queue into a worker's claims: at no instant do they exist only in somebody's memory.
--
-- KEYS  1 workers (sorted set: worker -> end of its lease in ms)   2 claims (hash: id -> message)
--       3 inbox (list: what BLMOVE has put aside, at most one)     4.. priority lists, most urgent first
-- ARGV  1 worker   2 id of the first claim; those of the others count up from it
--       3 most messages from the lists; what is in the inbox comes before them
--
-- Returns the messages in the order of their ids; or -1 when the worker has lost its lease: then what is in the inbox goes
-- back, for its grave may be forgotten.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    while redis.call('LMOVE', KEYS[3], KEYS[4], 'RIGHT', 'RIGHT') do end
    return -1
end
local messages = redis.call('RPOP', KEYS[3], 1) or {}
local most = #messages + tonumber(ARGV[3])
for list = 4, #KEYS do
    if #messages >= most then
        break
    end
    for _, message in ipairs(redis.call('RPOP', KEYS[list], most - #messages) or {}) do
        messages[#messages + 1] = message
    end
end
local first = tonumber(ARGV[2])
for from = 1, #messages, 500 do  -- unpack() holds a few thousand values at most
    local fields = {}
    for i = from, math.min(from + 499, #messages) do
        fields[#fields + 1] = string.format('%d', first + i - 1)
        fields[#fields + 1] = messages[i]
    end
    redis.call('HSET', KEYS[2], unpack(fields))
end
return messages
