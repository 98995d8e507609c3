-- One step in the life of a registered instance, by Redis's own clock.
--
-- KEYS[1]  the hash of a service's instances: id -> "<expires, Unix ms> <ttl, ms> <weight> <url>", or "<expires> gone" for
--          one that was deregistered, which nobody may bring back by mistake until then
-- ARGV     channel, what is published there, the most instances, step, id, ttl, weight, url; an empty ttl or weight stays
-- Returns  {result, now, entry}; the result is 'unreadable', the entry why, when the key holds something else
local key, channel, notice, max = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local step, id, ttl, weight, url = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

-- How long a deregistration is remembered: longer than gateways are cut off from Redis, most times.
local REMEMBERED = 600000

-- The ranges of validate.rs; an expiry may be a minute later than the longest ttl allows: the clock may have been set back.
local TTL_MIN, TTL_MAX, WEIGHT_MAX, URL_BYTES_MAX = 5000, 86400000, 1000, 512
local SET_BACK = 60000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local entries = redis.pcall('HGETALL', key)
if entries.err then return {'unreadable', string.format('%d', now), entries.err} end

-- When a field ends, and whether it is a deregistration; nil for one that no gateway has written.
local function read(field, text)
    if #field ~= 16 or string.find(field, '[^0-9a-f]') then return nil end
    local over = string.match(text, '^(%d+) gone$')
    if over then return tonumber(over), true end
    local expires, its_ttl, its_weight, its_url = string.match(text, '^(%d+) (%d+) (%d+) (.+)$')
    if not expires then return nil end
    local is_url = string.find(its_url, '^http://%S+$') or string.find(its_url, '^unix:/.')
    its_ttl, its_weight = tonumber(its_ttl), tonumber(its_weight)
    local is_good = is_url and #its_url <= URL_BYTES_MAX and its_ttl >= TTL_MIN and its_ttl <= TTL_MAX
        and its_weight >= 1 and its_weight <= WEIGHT_MAX
    if is_good then return tonumber(expires), false end
end

-- See who is left, what ends last, and what is to be forgotten: what is over, and what no gateway has written.
local count, last, old, gone, over = 0, now, nil, {}, {}
for i = 1, #entries, 2 do
    local expires, is_gone = read(entries[i], entries[i + 1])
    if not expires or expires <= now or expires > now + TTL_MAX + SET_BACK then
        over[#over + 1] = entries[i]
    else
        last = math.max(last, expires)
        if is_gone then
            gone[#gone + 1] = {expires, entries[i]}
        else
            count = count + 1
        end
        if entries[i] == id then old = entries[i + 1] end
    end
end
local is_gone = old and string.find(old, ' gone$')
local is_live = old and not is_gone

-- Of those deregistered, no more are remembered than there may be instances: the soonest to end go first.
local remembered = step == 'deregister' and not is_gone and max - 1 or max
if #gone > remembered then
    table.sort(gone, function(a, b) return a[1] < b[1] end)
    for i = 1, #gone - remembered do over[#over + 1] = gone[i][2] end
end

local is_written = false
local function write(lifetime, rest)
    is_written = true
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
elseif step == 'deregister' and not is_gone then
    -- One that was lost with Redis too: a gateway that is still cut off knows it, and would bring it back.
    write(REMEMBERED, 'gone')
    if is_live then
        result = 'known'
        publish()
    end
elseif step == 'try' or step == 'renew' and not is_gone then
    -- Whether anything can be written at all; nobody sees it. Whom a Redis that takes nothing does not have any more may be alive.
    redis.call('HSET', key, 'try', '')
    redis.call('HDEL', key, 'try')
end

-- Only now: once a script has deleted something, Redis takes whatever else it writes, even without the memory for it.
for _, field in ipairs(over) do
    if field ~= id or not is_written then redis.call('HDEL', key, field) end
end
return {result, string.format('%d', now), entry}
