"""What a Redis server does in one step for `RedisStorage`: scripts that may be run twice with the effect of once.

The first argument of each is the prefix of all keys; `robust_eval.storage.redis` says which keys there are.
"""

from collections.abc import Mapping
from typing import Final

SCRIPTS: Final[Mapping[str, str]] = {
    "new_search": """
        local number = redis.call('INCR', ARGV[1] .. 'next_search') - 1
        redis.call('HSET', ARGV[1] .. 'search:' .. number, 'next_job', 0)
        redis.call('RPUSH', ARGV[1] .. 'searches', number)
        return number""",
    "reserve": """
        local search = ARGV[1] .. 'search:' .. ARGV[2]
        if redis.call('EXISTS', search) == 0 then return -1 end
        return redis.call('HINCRBY', search, 'next_job', ARGV[3]) - ARGV[3]""",
    "create": """
        for at = 5, #ARGV do
            local job = ARGV[1] .. 'job:' .. ARGV[2] .. '.' .. (ARGV[3] + at - 5)
            redis.call('HSET', job, 'attempts', 0)
            if ARGV[4] ~= '' then redis.call('HSET', job, 'driver', ARGV[4]) end
            if ARGV[at] ~= '' then redis.call('HSET', job, 'arguments', ARGV[at]) end
        end""",
    # All jobs of a batch are there at once, or none is.
    "publish": """
        local search = ARGV[1] .. 'search:' .. ARGV[2]
        for number = tonumber(ARGV[3]), tonumber(ARGV[4]) do
            if redis.call('HSETNX', ARGV[1] .. 'job:' .. ARGV[2] .. '.' .. number, 'listed', 1) == 1 then
                redis.call('RPUSH', search .. ':jobs', number)
                if ARGV[5] ~= '' then redis.call('RPUSH', ARGV[1] .. 'driver:' .. ARGV[5] .. ':jobs', number) end
            end
        end""",
    # A job that no driver answers for has settled once somebody stored its objective.
    "put": """
        local job = ARGV[1] .. 'job:' .. ARGV[2] .. '.' .. ARGV[3]
        if redis.call('HEXISTS', job, 'listed') == 0 then return 0 end
        redis.call('HSET', job, ARGV[4], ARGV[5])
        if ARGV[4] == 'out' and redis.call('HEXISTS', job, 'driver') == 0
            and redis.call('HSETNX', job, 'settled', 1) == 1 then
            redis.call('RPUSH', ARGV[1] .. 'search:' .. ARGV[2] .. ':settled', ARGV[3])
        end
        return 1""",
    # A job of a driver keeps the name of one: without it, it is not there any more, and the caller must know.
    "settle": """
        local missing = 0
        for at = 4, #ARGV, 4 do
            local job = ARGV[1] .. 'job:' .. ARGV[2] .. '.' .. ARGV[at]
            local owner = redis.call('HGET', job, 'driver')
            if not owner then missing = missing + 1 end
            if owner == ARGV[3] and redis.call('HSETNX', job, 'settled', 1) == 1 then
                redis.call('HSET', job, 'out', ARGV[at + 1], 'metadata+', ARGV[at + 2])
                if ARGV[at + 3] ~= '' then redis.call('HSET', job, 'extra+', ARGV[at + 3]) end
                redis.call('RPUSH', ARGV[1] .. 'search:' .. ARGV[2] .. ':settled', ARGV[at])
            end
        end
        return missing""",
    "gather": """
        local missing = 0
        for at = 4, #ARGV, 2 do
            local job = ARGV[1] .. 'job:' .. ARGV[2] .. '.' .. ARGV[at]
            local owner = redis.call('HGET', job, 'driver')
            if not owner then missing = missing + 1 end
            if owner == ARGV[3] then redis.call('HSET', job, 'gathered', ARGV[at + 1]) end
        end
        return missing""",
    "take_over": """
        local search, job = ARGV[1] .. 'search:' .. ARGV[2], ARGV[1] .. 'job:' .. ARGV[2] .. '.'
        local dead, mine = ARGV[1] .. 'driver:' .. ARGV[3], ARGV[1] .. 'driver:' .. ARGV[4]
        if redis.call('SREM', search .. ':drivers', ARGV[3]) == 0 then return 0 end
        for _, number in ipairs(cjson.decode(ARGV[5])) do
            if redis.call('HGET', job .. number, 'driver') == ARGV[3]
                and redis.call('HEXISTS', job .. number, 'settled') == 0 then
                redis.call('HINCRBY', job .. number, 'attempts', 1)
            end
        end
        for _, number in ipairs(redis.call('LRANGE', dead .. ':jobs', 0, -1)) do
            redis.call('HSET', job .. number, 'driver', ARGV[4])
            redis.call('RPUSH', mine .. ':jobs', number)
        end
        redis.call('DEL', dead, dead .. ':jobs')
        return 1""",
}
