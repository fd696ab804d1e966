-- Answers the bucket and the time
if not tat then
  return answer(now)
end
return answer(now, tat, part, kept_limit, last, begun, given)
