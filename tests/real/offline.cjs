// Loaded into Flowise before its own code (node --require), so that a test server needs no internet
// and never outlives the tests.
const { createRequire } = require('node:module');
const path = require('node:path');

// 1. Only loopback is reachable. LangChain fetches its token vocabulary from the web to estimate
//    tokens, and tries for minutes when it cannot: hand it the copy inside an npm package instead.
const VOCABULARY_HOST = 'tiktoken.pages.dev';
const LOOPBACK = new Set(['127.0.0.1', 'localhost', '[::1]']);
const fetchFromNetwork = globalThis.fetch;
const fromFlowise = createRequire(path.join(process.env.TEST_FLOWISE_MODULES, 'index.js'));

function vocabulary(url) {
    const ranks = fromFlowise(`js-tiktoken/ranks/${path.basename(url.pathname, '.json')}`);
    return Response.json(ranks.default ?? ranks);
}

globalThis.fetch = async function fetch(resource, options) {
    const url = new URL(resource instanceof Request ? resource.url : String(resource));
    if (url.hostname === VOCABULARY_HOST) return vocabulary(url);
    if (LOOPBACK.has(url.hostname)) return fetchFromNetwork(resource, options);
    // an AbortError is the one failure that LangChain does not retry
    throw new DOMException(`the tests allow no request to ${url.host}`, 'AbortError');
};

// 2. When the tests are killed they cannot stop the server: it notices that its parent is gone.
const parent = Number(process.env.TEST_FLOWISE_PARENT);
if (process.ppid === parent) {
    setInterval(() => {
        if (process.ppid !== parent) process.exit(1);
    }, 1000).unref();
}
