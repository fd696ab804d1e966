-- ARGV 4 life of a lease
local value, ends = find(ARGV[3])
if value then
  return answer("hit", value, ends)
end
local _, until_then = lease_of(ARGV[3])
if until_then > now then
  return answer("busy", until_then - now)
end
-- Never a token that was given before, also where what was kept is lost.
local token = math.max(tonumber(redis.call("HGET", COUNTERS, "token") or 0) + 1, now)
local life = tonumber(ARGV[4])
redis.call("HSET", COUNTERS, "token", number(token))
redis.call("HSET", LEASES, ARGV[3], number(token) .. " " .. number(now + life))
redis.call("ZADD", ENDS, number(now + life + LEASE_KEPT), "L" .. ARGV[3])
sweep()
live(life + LEASE_KEPT)
return answer("lease", token)
