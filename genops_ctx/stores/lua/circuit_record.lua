-- ARGV 6 failures or "", 7 rate or "", 8 window, 9 minimum calls, 10 probes, 11 permit, 12 its version, 13 outcome
local PARTS_OF_WINDOW = 10

local function count(is_failure)
  local changed = is_failure or circuit[FAILURES] > 0
  if is_failure then
    failed(circuit[FAILURES] + 1)
  else
    circuit[FAILURES] = 0
  end
  if ARGV[6] ~= "" then
    local most, recent = tonumber(ARGV[6]), {}
    if is_failure then
      for _, at in ipairs(circuit[STREAK]) do
        if at > now - tonumber(ARGV[8]) then
          recent[#recent + 1] = at
        end
      end
      recent[#recent + 1] = now
      while #recent > most do
        table.remove(recent, 1)
      end
      circuit[FAILURES] = #recent
      if #recent >= most then
        become("open")
        return true
      end
    end
    changed = changed or #circuit[STREAK] > 0
    circuit[STREAK] = recent
  end
  if ARGV[7] ~= "" then
    local number = math.floor(now / math.floor(tonumber(ARGV[8]) / PARTS_OF_WINDOW))
    local parts = {}
    for _, part in ipairs(circuit[PARTS]) do
      if part[1] > number - PARTS_OF_WINDOW then
        parts[#parts + 1] = part
      end
    end
    local last = parts[#parts]
    if not last or last[1] < number then
      last = {number, 0, 0}
      parts[#parts + 1] = last
    end
    last[2] = last[2] + 1
    last[3] = last[3] + (is_failure and 1 or 0)
    local calls, failures = 0, 0
    for _, part in ipairs(parts) do
      calls, failures = calls + part[2], failures + part[3]
    end
    circuit[PARTS] = parts
    if calls >= tonumber(ARGV[9]) and failures >= tonumber(ARGV[7]) * calls then
      become("open")
    end
    return true
  end
  return changed
end

local function record(outcome)
  if circuit[STATE] == "closed" then
    return outcome ~= "ignored" and count(outcome == "failure")
  end
  local valid, rest = valid_permits(), {}
  for _, permit in ipairs(valid) do
    if permit[1] ~= ARGV[11] then
      rest[#rest + 1] = permit
    end
  end
  if #rest == #valid then
    return false
  end
  circuit[PERMITS] = rest
  if outcome == "failure" then
    failed(circuit[FAILURES] + 1)
    become("open")
  elseif outcome == "success" then
    circuit[PASSED] = circuit[PASSED] + 1
    if circuit[PASSED] >= tonumber(ARGV[10]) then
      become("closed")
    end
  end
  return true
end

if tonumber(ARGV[12]) == circuit[VERSION] and record(ARGV[13]) then
  keep()
end
return answer(circuit)
