// Exports spans as Flowise does, by its own copy of the exporter: node exporter.cjs MODULES URL KEY SPANS ROUNDS IDLE_MS
// Between two rounds nothing is sent, and at the end of that the process is busy, as Flowise is when calls begin.
// Prints how many spans were taken, and why the others were not.
const [modules, url, key, spans, rounds, idle] = process.argv.slice(2);
const load = require("module").createRequire(`${modules}/flowise-components/package.json`);
const { OTLPTraceExporter } = load("@opentelemetry/exporter-trace-otlp-proto");
const { NodeTracerProvider } = load("@opentelemetry/sdk-trace-node");
const { SimpleSpanProcessor } = load("@opentelemetry/sdk-trace-base");

const BUSY_MS = 400;
const exporter = new OTLPTraceExporter({ url: `${url}/v1/traces`, headers: { api_key: key } });
const told = { taken: 0, lost: {} };
const counting = {
  export: (batch, done) =>
    exporter.export(batch, (result) => {
      if (result.code === 0) told.taken += 1;
      else {
        const why = String((result.error && (result.error.code || result.error.message)) || "?");
        told.lost[why] = (told.lost[why] || 0) + 1;
      }
      done(result);
    }),
  forceFlush: () => Promise.resolve(),
  shutdown: () => exporter.shutdown(),
};
const provider = new NodeTracerProvider();
provider.addSpanProcessor(new SimpleSpanProcessor(counting));
const tracer = provider.getTracer("exporter");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

(async () => {
  for (let round = 1; round <= Number(rounds); round++) {
    for (let span = 0; span < Number(spans); span++) tracer.startSpan(`span ${span}`).end();
    while (told.taken + Object.values(told.lost).reduce((a, b) => a + b, 0) < round * Number(spans)) await pause(10);
    if (round === Number(rounds)) break;
    await pause(Number(idle) - BUSY_MS);
    const until = Date.now() + BUSY_MS;
    while (Date.now() < until);
  }
  console.log(JSON.stringify(told));
  process.exit(0);
})();
