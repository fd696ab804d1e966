-- ARGV 7 key, 8 frozen, 9 granted, 10 granted_until; "" leaves what was said before. Answers what is said now.
local before = redis.call("HGET", CONTROLS, ARGV[7]) or "0 0 0.0"
local frozen, granted, granted_until = before:match("^(%d) (%S+) (%S+)$")
if ARGV[8] ~= "" then
  frozen = ARGV[8]
end
if ARGV[9] ~= "" then
  granted, granted_until = ARGV[9], ARGV[10]
end
local said = frozen .. " " .. granted .. " " .. granted_until
redis.call("HSET", CONTROLS, ARGV[7], said)
return changed(said)
