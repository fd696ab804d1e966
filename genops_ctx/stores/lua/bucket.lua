-- KEYS 1 bucket. A bucket is kept as "tat part limit last begun given"; see core/ratelimit.py. ARGV 3 limit
local SET_BACK = 1000000
local limit = tonumber(ARGV[3])
local text = redis.call("GET", KEYS[1])
local tat, part, kept_limit, last, begun, given, dirty
if text then
  local fields = {}
  for field in text:gmatch("%d+") do
    fields[#fields + 1] = tonumber(field)
  end
  tat, part, kept_limit, last, begun, given = unpack(fields)
end

local function settle()
  if not tat then
    return
  end
  if kept_limit ~= limit then
    tat, part, kept_limit, dirty = tat + (part > 0 and 1 or 0), 0, limit, true
  end
  if last > now + SET_BACK then
    tat, last, begun, dirty = tat - (last - now), now, now, true
  end
end

local function keep()
  local text = string.format("%.0f %.0f %.0f %.0f %.0f %.0f", tat, part, limit, last, begun, given)
  -- A bucket that is full again is one that there is not.
  local life = math.max(math.ceil((tat - now) / 1000), 0) + 2000
  redis.call("SET", KEYS[1], text, "PX", string.format("%.0f", life))
end
