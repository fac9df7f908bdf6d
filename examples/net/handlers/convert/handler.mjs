// Converts a price with rates from a server, asked with Node's own fetch.

export async function handle(input, ctx) {
  const response = await fetch(`${input.server}/rates.json`);
  const rates = await response.json();
  const rate = rates[ctx.config.currency];
  if (rate === undefined) {
    return ctx.failure("UNKNOWN_CURRENCY", `no rate for ${ctx.config.currency}`, { retryable: false });
  }
  const amount = Math.round(input.quote.amount * rate * 100) / 100;
  return { ...input.quote, amount, currency: ctx.config.currency };
}
