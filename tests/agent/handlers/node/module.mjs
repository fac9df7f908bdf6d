export async function handle(input) {
  return { module: input };
}
