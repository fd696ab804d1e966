-- ARGV 6 id, 7 expires_at
local hold = find(ARGV[6])
local expires_at = tonumber(ARGV[7]) + ahead
if not hold or hold[STATE] ~= "held" or expires_at <= hold[EXPIRES_AT] then
  return answer()
end
hold[EXPIRES_AT] = expires_at
keep(ARGV[6], hold)
return changed()
