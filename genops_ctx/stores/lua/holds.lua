-- A hold as it is kept: a list of these fields, then the names of its accounts. Behind that list, where it
-- draws on others, a second one: name, dollars and nanos of each, innermost first, and without a name
-- what no other had. Versions that do not know of draws read the first list only.
local STATE, AMOUNT, BOOKED, EXPIRES_AT, KEYED, FORGET_AT, MEMO, TOKEN, FIRST = 1, 2, 4, 6, 7, 8, 9, 10, 11

local function unpacked(text)
  local hold, draws = cmsgpack.unpack(text)
  local token = hold[TOKEN]
  if not token or token:find("|", 1, true) then
    -- Kept by a version without tokens: this is its first account, whose name has a bar, as no token has.
    table.insert(hold, TOKEN, "")
  end
  return hold, draws
end

local function find(id)
  local text = redis.call("HGET", HOLDS, id)
  if text then
    return unpacked(text)
  end
end

local function keep(id, hold, draws)
  redis.call("HSET", HOLDS, id, draws and cmsgpack.pack(hold, draws) or cmsgpack.pack(hold))
  redis.call("ZADD", DUE, string.format("%.17g", hold[STATE] == "held" and hold[EXPIRES_AT] or hold[FORGET_AT]), id)
end

local function drop(id)
  redis.call("HDEL", HOLDS, id)
  redis.call("ZREM", DUE, id)
end

-- Add to what each account of a hold has spent and reserved.
local function book(hold, spent, spent_nanos, reserved, reserved_nanos)
  local names = {unpack(hold, FIRST)}
  if #names == 0 then
    return
  end
  local pairs_of = {}
  for index, text in ipairs(redis.call("HMGET", ACCOUNTS, unpack(names))) do
    local account = read_account(text)
    account[1], account[2] = tidy(account[1] + spent, account[2] + spent_nanos)
    account[3], account[4] = tidy(account[3] + reserved, account[4] + reserved_nanos)
    pairs_of[2 * index - 1], pairs_of[2 * index] = names[index], write_account(account)
  end
  redis.call("HSET", ACCOUNTS, unpack(pairs_of))
end

-- The names of a hold's accounts, as a set.
local function accounts_of(hold)
  local names = {}
  for place = FIRST, #hold do
    names[hold[place]] = true
  end
  return names
end

local function covers(hold, around)
  local names = accounts_of(hold)
  for place = FIRST, #around do
    if not names[around[place]] then
      return false
    end
  end
  return true
end

-- What becomes of the holds that one draws on, when it ends and has cost so much.
local function pay(hold, draws, actual, actual_nanos)
  if not draws then
    return
  end
  -- What calls inside have taken is spent, or theirs to give back.
  actual, actual_nanos = actual - hold[AMOUNT], actual_nanos - hold[AMOUNT + 1]
  for index = 1, #draws, 3 do
    actual, actual_nanos = actual + draws[index + 1], actual_nanos + draws[index + 2]
  end
  actual, actual_nanos = tidy(actual, actual_nanos)
  for index = 1, #draws, 3 do
    local name, drawn, drawn_nanos = draws[index], draws[index + 1], draws[index + 2]
    local around, further
    if name ~= "" then
      around, further = find(name)
    end
    if around and around[STATE] == "held" and covers(hold, around) then
      local left, left_nanos = tidy(around[AMOUNT] + drawn - actual, around[AMOUNT + 1] + drawn_nanos - actual_nanos)
      actual, actual_nanos = 0, 0
      if left < 0 then
        actual, actual_nanos = tidy(-left, -left_nanos)
        left, left_nanos = 0, 0
      end
      book(around, 0, 0, left - around[AMOUNT], left_nanos - around[AMOUNT + 1])
      around[AMOUNT], around[AMOUNT + 1] = left, left_nanos
      keep(name, around, further)
    else
      actual, actual_nanos = tidy(actual - drawn, actual_nanos - drawn_nanos)
      if actual < 0 then
        actual, actual_nanos = 0, 0
      end
    end
  end
end
