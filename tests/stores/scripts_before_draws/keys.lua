-- Every script declares all keys, in one hash tag, in this order.
local META, ACCOUNTS, HOLDS, CONTROLS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local DUE, SWEEP, LOSSES, MARKS = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local SCHEMA = 1
local clock = redis.call("TIME")
local server = clock[1] + clock[2] / 1000000
