#!/bin/sh
# Makes the secrets of docker-compose.yml, at random, in secrets/ beside it. What is there is kept.
# The one that cannot be made up is Flowise's API key: write it to secrets/flowise_api_key (docs/deployment.md).
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# The folder is its owner's only. The files are mounted one by one, and read there by users of other numbers.
write() {
    [ -e "secrets/$1" ] || { printf '%s\n' "$2" >"secrets/$1" && chmod 444 "secrets/$1"; }
}

redis=$(sed -n 's/^requirepass //p' secrets/redis_auth 2>/dev/null || true)
redis=${redis:-$(random)}
write redis_auth "requirepass $redis"
write genops_store "redis://:$redis@redis:6379/0"

postgres=$(cat secrets/postgres_password 2>/dev/null || random)
write postgres_password "$postgres"
write genops_ledger "postgresql://genops:$postgres@postgres:5432/costs"

write genops_signing_key "$(random)"
write genops_receiver_key "$(random)"
