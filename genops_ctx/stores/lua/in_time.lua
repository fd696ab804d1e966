-- Runs before every rule of resilience: nothing is done late. Times are microseconds, which doubles hold exactly.
-- ARGV 1 deadline (server time), 2 the time to go by, or "" for the server's
local clock = redis.call("TIME")
local server = clock[1] * 1000000 + clock[2]
if server > tonumber(ARGV[1]) then
  return {"late", clock[1], clock[2]}
end
local now = ARGV[2] == "" and server or tonumber(ARGV[2])

local function answer(...)
  return {"ok", clock[1], clock[2], ...}
end
