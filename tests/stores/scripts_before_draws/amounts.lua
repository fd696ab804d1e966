-- Exact nano-dollars. Lua's numbers are doubles, so an amount is two: whole dollars, and 0 <= nanos < 10^9.
local BASE = 1000000000

local function tidy(dollars, nanos)
  local carry = math.floor(nanos / BASE)
  return dollars + carry, nanos - carry * BASE
end

local function parse(text)
  local negative = text:byte(1) == 45
  if negative then
    text = text:sub(2)
  end
  local dollars, nanos = 0, 0
  if #text <= 9 then
    nanos = tonumber(text)
  else
    dollars, nanos = tonumber(text:sub(1, -10)), tonumber(text:sub(-9))
  end
  if negative then
    return tidy(-dollars, -nanos)
  end
  return dollars, nanos
end

local function show(dollars, nanos)
  local sign = ""
  if dollars < 0 then
    sign = "-"
    dollars, nanos = tidy(-dollars, -nanos)
  end
  if dollars == 0 then
    return string.format("%s%d", sign, nanos)
  end
  return string.format("%s%d%09d", sign, dollars, nanos)
end

local function less(dollars, nanos, than_dollars, than_nanos)
  return dollars < than_dollars or (dollars == than_dollars and nanos < than_nanos)
end

-- An account is {spent dollars, spent nanos, reserved dollars, reserved nanos}; kept as "spent reserved".
local function read_account(text)
  if not text then
    return {0, 0, 0, 0}
  end
  local space = text:find(" ", 1, true)
  local a, b = parse(text:sub(1, space - 1))
  local c, d = parse(text:sub(space + 1))
  return {a, b, c, d}
end

local function write_account(account)
  return show(account[1], account[2]) .. " " .. show(account[3], account[4])
end
