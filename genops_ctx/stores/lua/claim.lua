-- For the one who may begin the store anew, as long as its claim lasts; asked again, it lasts for longer.
-- ARGV 1 token of the claim, 2 seconds that it lasts
local held = redis.call("HMGET", META, "restorer", "restorer_until")
if held[1] and held[1] ~= ARGV[1] and server < tonumber(held[2]) then
  return {"taken", clock[1], clock[2]}
end
redis.call("HSET", META, "restorer", ARGV[1], "restorer_until", string.format("%.17g", server + tonumber(ARGV[2])))
return {"claimed", clock[1], clock[2]}
