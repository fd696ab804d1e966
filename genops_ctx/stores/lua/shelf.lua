-- KEYS 1 values, 2 last use (in order), 3 ends, 4 leases, 5 counters. ARGV 3 key
local VALUES, USED, ENDS, LEASES, COUNTERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local LEASE_KEPT, SWEPT_AT_ONCE = 3600000000, 200

local function number(value)
  return string.format("%.0f", value)
end

local function find(key)
  local ends = redis.call("ZSCORE", ENDS, "E" .. key)
  if not ends or tonumber(ends) <= now then
    return nil
  end
  redis.call("ZADD", USED, redis.call("HINCRBY", COUNTERS, "used", 1), key)
  return redis.call("HGET", VALUES, key), tonumber(ends)
end

local function drop(key)
  redis.call("ZREM", ENDS, "E" .. key)
  redis.call("ZREM", USED, key)
  return redis.call("HDEL", VALUES, key)
end

local function drop_lease(key)
  redis.call("ZREM", ENDS, "L" .. key)
  redis.call("HDEL", LEASES, key)
end

local function lease_of(key)
  local text = redis.call("HGET", LEASES, key)
  if not text then
    return nil, 0
  end
  local token, ends = text:match("^(%d+) (%d+)$")
  return token, tonumber(ends)
end

local function sweep()
  local over = redis.call("ZRANGEBYSCORE", ENDS, "-inf", number(now), "LIMIT", 0, SWEPT_AT_ONCE)
  for _, member in ipairs(over) do
    local key = member:sub(2)
    if member:sub(1, 1) == "E" then
      drop(key)
    else
      drop_lease(key)
    end
  end
  return #over == SWEPT_AT_ONCE
end

-- An abandoned cache goes as a whole.
local function live(micros)
  local wanted = math.ceil(micros / 1000) + 60000
  for _, key in ipairs(KEYS) do
    if redis.call("PTTL", key) < wanted then
      redis.call("PEXPIRE", key, number(wanted))
    end
  end
end
