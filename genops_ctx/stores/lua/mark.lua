-- ARGV 6 key, 7 until, or "" for never
local key, member = ARGV[6], "mark " .. ARGV[6]
local there = redis.call("HGET", MARKS, key)
if there and (there == "" or tonumber(there) > now) then
  return answer(0)
end
redis.call("HSET", MARKS, key, ARGV[7])
if ARGV[7] == "" then
  redis.call("ZREM", SWEEP, member)
else
  redis.call("ZADD", SWEEP, ARGV[7], member)
end
return changed(1)
