-- One step in the life of a registered instance, by Redis's own clock.
--
-- KEYS[1]  the hash of a service's instances: id -> "<expires, Unix ms> <ttl, ms> <weight> <url>", or "<expires> gone" for
--          one that was deregistered, which nobody may bring back by mistake until then
-- ARGV     channel, what is published there, the most instances, step, id, ttl, weight, url; an empty ttl or weight stays
-- Returns  {result, now, entry}
local key, channel, notice, max = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local step, id, ttl, weight, url = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

-- How long a deregistration is remembered: longer than gateways are cut off from Redis, most times.
local REMEMBERED = 600000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Forget what is over; see who is left, and what ends last.
local count, last, old = 0, now, nil
local entries = redis.call('HGETALL', key)
for i = 1, #entries, 2 do
    local expires = tonumber(string.match(entries[i + 1], '^%d+'))
    if not expires or expires <= now then
        redis.call('HDEL', key, entries[i])
    else
        last = math.max(last, expires)
        if not string.find(entries[i + 1], ' gone$') then count = count + 1 end
        if entries[i] == id then old = entries[i + 1] end
    end
end
local is_gone = old and string.find(old, ' gone$')
local is_live = old and not is_gone

local function write(lifetime, rest)
    local entry = string.format('%d %s', now + lifetime, rest)
    redis.call('HSET', key, id, entry)
    redis.call('PEXPIREAT', key, string.format('%d', math.max(last, now + lifetime)))
    return entry
end

-- Who may write but not publish is read at the next look at all.
local function publish()
    redis.pcall('PUBLISH', channel, notice)
end

local result, entry = 'absent', ''
if step == 'register' or step == 'restore' then
    if not is_live and count >= max then
        result = 'full'
    elseif step == 'restore' and old then
        result = is_gone and 'gone' or 'known'
    else
        result = is_live and 'known' or 'new'
        local rest = string.format('%s %s %s', ttl, weight, url)
        entry = write(tonumber(ttl), rest)
        if not is_live or string.match(old, '^%d+ %d+ (.*)$') ~= weight .. ' ' .. url then publish() end
    end
elseif step == 'renew' and is_live then
    local old_ttl, old_weight, its_url = string.match(old, '^%d+ (%d+) (%d+) (.*)$')
    if ttl == '' then ttl = old_ttl end
    if weight == '' then weight = old_weight end
    entry = write(tonumber(ttl), string.format('%s %s %s', ttl, weight, its_url))
    result = 'known'
    if weight ~= old_weight then publish() end
elseif step == 'deregister' and is_live then
    write(REMEMBERED, 'gone')
    result = 'known'
    publish()
end
return {result, string.format('%d', now), entry}
