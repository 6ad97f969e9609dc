-- Forget cached results.
--
-- KEYS  1 uses   2 entries   3 counts   then the entry of each   ARGV  member of each
--
-- Returns how many there were.
--include forget
local forgotten = 0
for i, member in ipairs(ARGV) do
    forgotten = forgotten + forget(KEYS[1], KEYS[2], KEYS[3], member, KEYS[3 + i])
end
return forgotten
