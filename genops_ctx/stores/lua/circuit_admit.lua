-- ARGV 6 recovery, 7 probes, 8 permit, 9 its life. Answers "permit" or "denied", state, version, wait
if circuit[STATE] == "closed" then
  return answer("permit", "closed", circuit[VERSION], 0)
end
if circuit[FORCED] == 1 then
  return answer("denied", "open", circuit[VERSION], -1)
end
if circuit[STATE] == "open" then
  local set_back = circuit[SINCE] > now
  if set_back then
    circuit[SINCE] = now
  end
  local wait = circuit[SINCE] + tonumber(ARGV[6]) - now
  if wait > 0 then
    if set_back then
      keep()
    end
    return answer("denied", "open", circuit[VERSION], wait)
  end
  become("half_open")
end
local valid = valid_permits()
local known, first = false, nil
for _, permit in ipairs(valid) do
  known = known or permit[1] == ARGV[8]
  if not first or permit[2] < first then
    first = permit[2]
  end
end
local changed = #valid ~= #circuit[PERMITS]
circuit[PERMITS] = valid
if not known and #valid + circuit[PASSED] >= tonumber(ARGV[7]) then
  if changed then
    keep()
  end
  return answer("denied", "half_open", circuit[VERSION], (first or now) - now)
end
if not known then
  valid[#valid + 1] = {ARGV[8], now + tonumber(ARGV[9])}
end
keep()
return answer("permit", "half_open", circuit[VERSION], 0)
