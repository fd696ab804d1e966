-- ARGV 7 id, 8 expires_at
local hold = find(ARGV[7])
local expires_at = tonumber(ARGV[8]) + ahead
if not hold or hold[STATE] ~= "held" or expires_at <= hold[EXPIRES_AT] then
  return answer()
end
hold[EXPIRES_AT] = expires_at
keep(ARGV[7], hold)
return changed()
