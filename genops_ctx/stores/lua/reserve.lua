-- ARGV 7 id, 8 amount, 9 expires_at, 10 at_most, 11 free, 12 keyed, 13 memo, 14 token, 15 number of watches; then for each:
-- account, limit, starts_at, ends_at or "", enforced, control or "", kept until or "", before or "", n, n further accounts
-- then n, n holds of the calls around, innermost first, that it draws on; then the floor, none where it is missing
if meta[5] and server < tonumber(meta[5]) then
  -- Begun anew a moment ago: clients still tell of their calls in flight.
  return answer("closed", string.format("%.3f", meta[5] - server))
end
local id = ARGV[7]
local seen = find(id)
if seen then
  if seen[STATE] == "held" or seen[FORGET_AT] > now then
    return answer("seen", seen[STATE], show(seen[AMOUNT], seen[AMOUNT + 1]))
  end
  drop(id)
end

local watches, names, places, controls = {}, {}, {}, {}
local function look_at(name)
  if not places[name] then
    names[#names + 1] = name
    places[name] = #names
  end
end
local at = 16
for index = 1, tonumber(ARGV[15]) do
  local watch = {
    account = ARGV[at], limit = ARGV[at + 1], starts_at = tonumber(ARGV[at + 2]), ends_at = tonumber(ARGV[at + 3]),
    enforced = ARGV[at + 4] == "1", observed = ARGV[at + 4] == "2", control = ARGV[at + 5],
    kept_until = ARGV[at + 6], before = ARGV[at + 7], also = {},
  }
  look_at(watch.account)
  local further = tonumber(ARGV[at + 8])
  for number = 1, further do
    watch.also[number] = ARGV[at + 8 + number]
    look_at(watch.also[number])
  end
  if watch.before ~= "" then
    look_at(watch.before)
  end
  if watch.control ~= "" and not controls[watch.control] then
    controls[#controls + 1] = watch.control
    controls[watch.control] = true
  end
  watches[index] = watch
  at = at + 9 + further
end

local around = {}
for place = at + 1, at + tonumber(ARGV[at]) do
  local hold, draws = find(ARGV[place])
  if hold and hold[STATE] == "held" then
    around[#around + 1] = {name = ARGV[place], hold = hold, draws = draws, accounts = accounts_of(hold)}
  end
end
local function counts_in(watch, names)
  local found = names[watch.account]
  for _, name in ipairs(watch.also) do
    found = found or names[name]
  end
  return found
end
for index = #around, 1, -1 do
  local shared = false
  for _, watch in ipairs(watches) do
    shared = shared or counts_in(watch, around[index].accounts)
  end
  if not shared then
    table.remove(around, index)
  end
end
-- How much it may reserve under a limit with so much left.
local function reach(left, left_nanos, watch)
  local room, room_nanos, reached, reached_nanos = left, left_nanos, 0, 0
  if left < 0 then
    room, room_nanos = 0, 0
  end
  for _, each in ipairs(around) do
    local step, step_nanos, short = each.hold[AMOUNT], each.hold[AMOUNT + 1], false
    if not counts_in(watch, each.accounts) then
      -- It is drawn on all the same, in its turn, and helps nothing here.
      if less(room, room_nanos, step, step_nanos) then
        step, step_nanos, short = room, room_nanos, true
      end
      room, room_nanos = tidy(room - step, room_nanos - step_nanos)
    end
    reached, reached_nanos = tidy(reached + step, reached_nanos + step_nanos)
    if short then
      room, room_nanos = 0, 0
      break
    end
  end
  reached, reached_nanos = tidy(reached + room, reached_nanos + room_nanos)
  if reached == 0 and reached_nanos == 0 then
    return left, left_nanos
  end
  return reached, reached_nanos
end

local accounts = {}
if #names > 0 then
  for index, text in ipairs(redis.call("HMGET", ACCOUNTS, unpack(names))) do
    accounts[names[index]] = read_account(text)
  end
end
local said = {}
if #controls > 0 then
  for index, text in ipairs(redis.call("HMGET", CONTROLS, unpack(controls))) do
    if text then
      local frozen, granted, granted_until = text:match("^(%d) (%S+) (%S+)$")
      said[controls[index]] = {frozen == "1", granted, tonumber(granted_until)}
    end
  end
end

local free = ARGV[11] == "1"
local amount, amount_nanos = parse(ARGV[8])
if free then
  amount, amount_nanos = 0, 0
end
local wanted = show(amount, amount_nanos)
local least, least_nanos = amount, amount_nanos
local tightest, soft = nil, {}
for index, watch in ipairs(watches) do
  if now < watch.starts_at or (watch.ends_at and now >= watch.ends_at) then
    return answer("window", string.format("%.17g", now))
  end
  local limit, limit_nanos = parse(watch.limit)
  if watch.before ~= "" then
    local before = accounts[watch.before]
    local rest, rest_nanos = tidy(limit - before[1] - before[3], limit_nanos - before[2] - before[4])
    if rest >= 0 then
      limit, limit_nanos = tidy(limit + rest, limit_nanos + rest_nanos)
    end
  end
  local control = said[watch.control]
  if control and now < control[3] then
    local granted, granted_nanos = parse(control[2])
    limit, limit_nanos = tidy(limit + granted, limit_nanos + granted_nanos)
  end
  local counted = accounts[watch.account]
  if #watch.also > 0 then
    local spent, spent_nanos, reserved, reserved_nanos = unpack(counted)
    for _, name in ipairs(watch.also) do
      local part = accounts[name]
      spent, spent_nanos = tidy(spent + part[1], spent_nanos + part[2])
      reserved, reserved_nanos = tidy(reserved + part[3], reserved_nanos + part[4])
    end
    counted = {spent, spent_nanos, reserved, reserved_nanos}
  end
  local left, left_nanos = tidy(limit - counted[1] - counted[3], limit_nanos - counted[2] - counted[4])
  if #around > 0 then
    left, left_nanos = reach(left, left_nanos, watch)
  end
  local refusal = {index - 1, counted, show(limit, limit_nanos)}
  local frozen = control and control[1]
  if frozen and not watch.observed then
    return answer("refused", index - 1, show(counted[1], counted[2]), show(counted[3], counted[4]), wanted, refusal[3], 1)
  elseif not watch.enforced then
    if frozen then
      left, left_nanos = tidy(0, -1)
    end
    soft[#soft + 1] = {index - 1, left, left_nanos}
  elseif not free and less(left, left_nanos, amount, amount_nanos)
      and (not tightest or less(left, left_nanos, least, least_nanos)) then
    tightest = refusal
    least, least_nanos = left, left_nanos
  end
end
if tightest then
  local floor, floor_nanos = parse(ARGV[at + tonumber(ARGV[at]) + 1] or "0")
  if ARGV[10] ~= "1" or not less(0, 0, least, least_nanos) or less(least, least_nanos, floor, floor_nanos) then
    local counted = tightest[2]
    return answer("refused", tightest[1], show(counted[1], counted[2]), show(counted[3], counted[4]), wanted, tightest[3], 0)
  end
  amount, amount_nanos = least, least_nanos
end

local hold = {"held", amount, amount_nanos, 0, 0, tonumber(ARGV[9]) + ahead, ARGV[12] == "1" and 1 or 0, 0, ARGV[13], ARGV[14]}
local draws
if #around > 0 then
  draws = {}
  local rest, rest_nanos = amount, amount_nanos
  for _, each in ipairs(around) do
    local from = each.hold
    local taken, taken_nanos = rest, rest_nanos
    if less(from[AMOUNT], from[AMOUNT + 1], rest, rest_nanos) then
      taken, taken_nanos = from[AMOUNT], from[AMOUNT + 1]
    end
    rest, rest_nanos = tidy(rest - taken, rest_nanos - taken_nanos)
    draws[#draws + 1], draws[#draws + 2], draws[#draws + 3] = each.name, taken, taken_nanos
    book(from, 0, 0, -taken, -taken_nanos)
    from[AMOUNT], from[AMOUNT + 1] = tidy(from[AMOUNT] - taken, from[AMOUNT + 1] - taken_nanos)
    keep(each.name, from, each.draws)
  end
  if rest > 0 or rest_nanos > 0 then
    draws[#draws + 1], draws[#draws + 2], draws[#draws + 3] = "", rest, rest_nanos
  end
  for index, text in ipairs(redis.call("HMGET", ACCOUNTS, unpack(names))) do
    accounts[names[index]] = read_account(text)
  end
end
local booked, new, ends = {}, {}, {}
for _, watch in ipairs(watches) do
  local name = watch.account
  if not new[name] then
    new[name] = true
    hold[#hold + 1] = name
    local account = accounts[name]
    account[3], account[4] = tidy(account[3] + amount, account[4] + amount_nanos)
    booked[#booked + 1] = name
    booked[#booked + 1] = write_account(account)
    if watch.kept_until ~= "" then
      ends[#ends + 1] = watch.kept_until
      ends[#ends + 1] = "account " .. name
    end
  end
end
if #booked > 0 then
  redis.call("HSET", ACCOUNTS, unpack(booked))
end
if #ends > 0 then
  redis.call("ZADD", SWEEP, "NX", unpack(ends))
end
keep(id, hold, draws)
local passed = {}
for _, each in ipairs(soft) do
  if less(each[2], each[3], amount, amount_nanos) then
    passed[#passed + 1] = each[1]
  end
end
return changed("held", show(amount, amount_nanos), passed)
