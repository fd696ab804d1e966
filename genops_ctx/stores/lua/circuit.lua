-- KEYS 1 circuit, 2 index of those that ever changed. ARGV 3 channel, 4 start of the event, 5 name
-- A circuit is kept as a list of these fields; see core/breaker.py. Behind that list stands a second one, of
-- the last two: versions that do not know of counts read the first list only.
local STATE, VERSION, SINCE, FORCED, STREAK, PARTS, PERMITS, PASSED = 1, 2, 3, 4, 5, 6, 7, 8
local FAILURES, LAST_FAILURE = 9, 10
local WEEK = 604800000
local before = redis.call("GET", KEYS[1])
local circuit, counts = {"closed", 0, 0, 0, {}, {}, {}, 0}, nil
if before then
  circuit, counts = cmsgpack.unpack(before)
end
counts = counts or {0, 0}
circuit[FAILURES], circuit[LAST_FAILURE] = counts[1], counts[2]

local function keep()
  local forced = circuit[FORCED] == 1
  local known, counts = {unpack(circuit, 1, PASSED)}, {circuit[FAILURES], circuit[LAST_FAILURE]}
  redis.call("SET", KEYS[1], cmsgpack.pack(known, counts))
  if not forced then
    redis.call("PEXPIRE", KEYS[1], WEEK)
  end
end

local function become(state, forced)
  local version = math.max(circuit[VERSION] + 1, now)
  local failures = state == "closed" and 0 or circuit[FAILURES]
  circuit = {state, version, now, forced or 0, {}, {}, {}, 0, failures, circuit[LAST_FAILURE]}
  redis.call("ZADD", KEYS[2], forced and "+inf" or string.format("%.0f", version), ARGV[5])
  redis.call("ZREMRANGEBYRANK", KEYS[2], 0, -100001)
  -- Whoever may not publish still has a breaker: peers then learn by asking.
  redis.pcall("PUBLISH", ARGV[3], string.format(
    '%s"state":"%s","version":%.0f,"since":%.0f,"forced":%s}',
    ARGV[4], state, version, now, forced == 1 and "true" or "false"
  ))
end

local function failed(failures)
  circuit[FAILURES], circuit[LAST_FAILURE] = failures, now
end

local function valid_permits()
  local valid = {}
  for _, permit in ipairs(circuit[PERMITS]) do
    if permit[2] > now then
      valid[#valid + 1] = permit
    end
  end
  return valid
end
