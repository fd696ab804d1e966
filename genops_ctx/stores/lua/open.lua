-- The first word of a client: joins the store, or makes it where there is nothing at all.
-- ARGV 1 generation to make it with, 2 the generation that the client expects, or ""
local there = redis.call("EXISTS", unpack(KEYS))
local meta = redis.call("HMGET", META, "generation", "counter", "lost", "schema")
if meta[4] and tonumber(meta[4]) > SCHEMA then
  return {"newer", clock[1], clock[2], meta[4], SCHEMA}
end
if meta[3] then
  return {"lost", clock[1], clock[2], meta[3]}
end
if meta[1] and there == #KEYS then
  return {"open", clock[1], clock[2], meta[1], meta[2]}
end
if there > 0 or ARGV[2] ~= "" then
  local why = there > 0 and "a part of it is gone" or "it was emptied"
  redis.call("HSET", META, "lost", why)
  return {"lost", clock[1], clock[2], why}
end
redis.call("HSET", META, "generation", ARGV[1], "counter", 0, "schema", SCHEMA, "made_at", clock[1])
-- A mark in each, so that none is ever empty and a missing one is a lost one.
for index, key in ipairs(KEYS) do
  if index == 5 or index == 6 then
    redis.call("ZADD", key, "+inf", "")
  elseif index > 1 then
    redis.call("HSET", key, "", "")
  end
end
return {"made", clock[1], clock[2], ARGV[1], "0"}
