-- ARGV 7 key, 8 until, or "" for never
local key, member = ARGV[7], "mark " .. ARGV[7]
local there = redis.call("HGET", MARKS, key)
if there and (there == "" or tonumber(there) > now) then
  return answer(0)
end
redis.call("HSET", MARKS, key, ARGV[8])
if ARGV[8] == "" then
  redis.call("ZREM", SWEEP, member)
else
  redis.call("ZADD", SWEEP, ARGV[8], member)
end
return changed(1)
