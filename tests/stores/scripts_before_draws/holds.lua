-- A hold as it is kept: a list of these fields, then the names of its accounts.
local STATE, AMOUNT, BOOKED, EXPIRES_AT, KEYED, FORGET_AT, MEMO, TOKEN, FIRST = 1, 2, 4, 6, 7, 8, 9, 10, 11

local function unpacked(text)
  local hold = cmsgpack.unpack(text)
  local token = hold[TOKEN]
  if not token or token:find("|", 1, true) then
    -- Kept by a version without tokens: this is its first account, whose name has a bar, as no token has.
    table.insert(hold, TOKEN, "")
  end
  return hold
end

local function find(id)
  local text = redis.call("HGET", HOLDS, id)
  return text and unpacked(text)
end

local function keep(id, hold)
  redis.call("HSET", HOLDS, id, cmsgpack.pack(hold))
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
