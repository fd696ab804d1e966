-- ARGV 4 and 5 step of the request and its rest, 6 base, 7 begun, 8 given, 9 when it came
if tat and kept_limit == limit and begun == tonumber(ARGV[7]) then
  local step = tonumber(ARGV[4])
  local rest = tonumber(ARGV[5])
  local stood = math.max(tonumber(ARGV[6]) - (given - tonumber(ARGV[8])), tonumber(ARGV[9]))
  local late = math.max(last - stood, 0)
  if late <= step then
    tat, part = tat - step + late, part - rest
    if part < 0 then
      tat, part = tat - 1, part + limit
    end
    given = given + step + (rest > 0 and 1 or 0) - late
    keep()
  end
end
return answer()
