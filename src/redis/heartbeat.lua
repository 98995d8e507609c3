-- How many gateways share this ledger.
--
-- KEYS[1]  a sorted set of gateways by when they were last heard of (ms)
-- ARGV     who calls, after how long one that is silent no longer counts (ms)
-- Answers  how many there are, the caller among them
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
