-- Runs before every transition: nothing is done late, and nothing on data that is not the data.
-- ARGV 1 deadline (server time), 2 generation, 3 counter last seen, 4 caller's now, 5 "1": go by that,
-- 6 an attempt whose end this data was told, or ""; then the transition's own, from 7 on
if server > tonumber(ARGV[1]) then
  return {"stale", clock[1], clock[2]}
end

local meta = redis.call("HMGET", META, "generation", "counter", "lost", "ancestors", "opens_at")
local whole = redis.call("EXISTS", unpack(KEYS)) == #KEYS
local old = meta[1] == ARGV[2] and tonumber(meta[2]) < tonumber(ARGV[3])
if not old and ARGV[6] ~= "" and meta[1] == ARGV[2] then
  -- Its counter may have been overtaken again. A packed hold begins with its state.
  local told = redis.call("HGET", HOLDS, ARGV[6])
  old = not told or told:sub(1, 8):find("held", 1, true) ~= nil
end
if meta[3] or meta[1] ~= ARGV[2] or not whole or old then
  if meta[3] then
    return {"lost", clock[1], clock[2], meta[3]}
  end
  if whole and meta[1] and meta[1] ~= ARGV[2] and (meta[4] or ""):find(" " .. ARGV[2] .. " ", 1, true) then
    return {"adopt", clock[1], clock[2], meta[1], meta[2]}
  end
  local why = "it went back to an earlier state"
  if not meta[1] then
    why = "it was emptied"
  elseif meta[1] ~= ARGV[2] then
    why = "it was emptied and begun anew"
  elseif not whole then
    why = "a part of it is gone"
  end
  -- For everybody, also for who comes later and would take it for new.
  redis.call("HSET", META, "lost", why)
  return {"lost", clock[1], clock[2], why}
end

-- The store's clock, and how far it is ahead of the caller's.
local now = server
if ARGV[5] == "1" then
  now = tonumber(ARGV[4])
end
local ahead = now - tonumber(ARGV[4])

local function answer(...)
  return {"ok", clock[1], clock[2], meta[2], ...}
end

local function changed(...)
  return {"ok", clock[1], clock[2], redis.call("HINCRBY", META, "counter", 1), ...}
end
