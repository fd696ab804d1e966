-- Begins the store anew from what the ledger says, as one step; who comes second finds it done.
-- ARGV 1 generation that was lost, 2 counter last seen, 3 the new generation, 4 "1": also where
-- nothing is lost, 5 token of the claim to do so, or "", 6 seconds in which nothing is reserved anew; then
-- n, n × (account, spent); n, n × (id, state, amount, booked, expires_at, keyed, forget_at, memo,
-- n, accounts); n, n × (control, its text)
local whole = redis.call("EXISTS", unpack(KEYS)) == #KEYS
local meta = redis.call("HMGET", META, "generation", "counter", "lost", "ancestors", "restorer", "schema")
if meta[6] and tonumber(meta[6]) > SCHEMA then
  return {"newer", clock[1], clock[2], meta[6], SCHEMA}
end
if ARGV[5] ~= "" then
  if meta[5] ~= ARGV[5] then
    return {"fenced", clock[1], clock[2], meta[1] or "", meta[2] or "0"}
  end
  redis.call("HDEL", META, "restorer", "restorer_until")
end
local ancestors = meta[4] or " "
if whole and meta[1] and not meta[3] and ARGV[4] ~= "1" then
  -- Who expects nothing has come too late to know what was lost.
  local same = ARGV[1] == "" or (meta[1] == ARGV[1] and tonumber(meta[2]) >= tonumber(ARGV[2]))
  if same or ancestors:find(" " .. ARGV[1] .. " ", 1, true) then
    return {"kept", clock[1], clock[2], meta[1], meta[2]}
  end
end

local at = 7
local function take()
  at = at + 1
  return ARGV[at - 1]
end
local accounts, names = {}, {}
local function account(name)
  if not accounts[name] then
    names[#names + 1] = name
    accounts[name] = {0, 0, 0, 0}
  end
  return accounts[name]
end
for _ = 1, tonumber(take()) do
  local each = account(take())
  each[1], each[2] = parse(take())
end
local ended = {}
for _ = 1, tonumber(take()) do
  local id, hold = take(), {take()}
  hold[AMOUNT], hold[AMOUNT + 1] = parse(take())
  hold[BOOKED], hold[BOOKED + 1] = parse(take())
  hold[EXPIRES_AT], hold[KEYED], hold[FORGET_AT], hold[MEMO] = tonumber(take()), tonumber(take()), tonumber(take()), take()
  hold[TOKEN] = ""
  for _ = 1, tonumber(take()) do
    hold[#hold + 1] = take()
  end
  -- Also where a hold is there: that may be of an old snapshot, or not yet know what the accounts have.
  keep(id, hold)
  ended[id] = true
end
for _ = 1, tonumber(take()) do
  redis.call("HSETNX", CONTROLS, take(), take())
end

-- What is reserved is what the holds say that are there.
local kept = redis.call("HGETALL", HOLDS)
for index = 1, #kept, 2 do
  if kept[index] ~= "" then
    local hold = unpacked(kept[index + 1])
    redis.call("ZADD", DUE, string.format("%.17g", hold[STATE] == "held" and hold[EXPIRES_AT] or hold[FORGET_AT]), kept[index])
    if hold[STATE] == "held" then
      for place = FIRST, #hold do
        local each = account(hold[place])
        each[3], each[4] = tidy(each[3] + hold[AMOUNT], each[4] + hold[AMOUNT + 1])
      end
    elseif hold[STATE] == "lost" and not ended[kept[index]] and redis.call("HEXISTS", LOSSES, kept[index]) == 1 then
      -- A loss that the ledger is still to hear of.
      for place = FIRST, #hold do
        local each = account(hold[place])
        each[1], each[2] = tidy(each[1] + hold[BOOKED], each[2] + hold[BOOKED + 1])
      end
    end
  end
end
redis.call("DEL", ACCOUNTS)
for _, name in ipairs(names) do
  redis.call("HSET", ACCOUNTS, name, write_account(accounts[name]))
end
for index, key in ipairs(KEYS) do
  if index == 5 or index == 6 then
    redis.call("ZADD", key, "+inf", "")
  elseif index > 1 then
    redis.call("HSET", key, "", "")
  end
end
local counter = math.max(tonumber(meta[2] or "0"), tonumber(ARGV[2])) + 1
for _, name in ipairs({ARGV[1], meta[1] or ""}) do
  if name ~= "" and not ancestors:find(" " .. name .. " ", 1, true) then
    ancestors = ancestors .. name .. " "
  end
end
redis.call("HDEL", META, "lost", "opens_at")
if tonumber(ARGV[6]) > 0 then
  redis.call("HSET", META, "opens_at", string.format("%.17g", server + tonumber(ARGV[6])))
end
redis.call(
  "HSET", META, "generation", ARGV[3], "counter", string.format("%d", counter), "ancestors", ancestors,
  "schema", SCHEMA, "made_at", clock[1]
)
return {"restored", clock[1], clock[2], ARGV[3], string.format("%d", counter)}
