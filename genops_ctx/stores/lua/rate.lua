-- KEYS 1 what was observed: "rate calls failures"; see core/adaptive.py
-- ARGV 3 base, 4 minimum, 5 maximum, 6 sample, 7 shrink above, 8 grow below, 9 shrink, 10 grow, 11 "1", "0", or "" to look
local WEEK = 604800000
local text = redis.call("GET", KEYS[1])
local rate, calls, failures = tonumber(ARGV[3]), 0, 0
if text then
  rate, calls, failures = text:match("^(%d+) (%d+) (%d+)$")
  rate, calls, failures = tonumber(rate), tonumber(calls), tonumber(failures)
end
local lowest, highest = tonumber(ARGV[4]), tonumber(ARGV[5])
rate = math.min(math.max(rate, lowest), highest)
if ARGV[11] == "" then
  return answer(rate)
end
calls, failures = calls + 1, failures + tonumber(ARGV[11])
if calls >= tonumber(ARGV[6]) then
  if failures > tonumber(ARGV[7]) * calls then
    rate = math.max(math.min(math.floor(rate * tonumber(ARGV[9])), rate - 1), lowest)
  elseif failures < tonumber(ARGV[8]) * calls then
    rate = math.min(math.max(math.floor(rate * tonumber(ARGV[10])), rate + 1), highest)
  end
  calls, failures = 0, 0
end
redis.call("SET", KEYS[1], string.format("%.0f %.0f %.0f", rate, calls, failures), "PX", WEEK)
return answer(rate)
