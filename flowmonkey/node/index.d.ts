// Types of the authoring library for handlers in JavaScript and TypeScript.

/** Any JSON value. */
export type Json = string | number | boolean | null | Json[] | { [name: string]: Json | undefined };

export type InputType =
  'string' | 'number' | 'integer' | 'boolean' | 'object' | 'array' | 'null' | 'any';
export type InputSource = 'input' | 'config' | 'context' | 'vault' | 'static';

/** What is asked of a value; which rule fits which type is checked when the class is made. */
export interface Rules {
  /** The least and the greatest number. */
  readonly min?: number;
  readonly max?: number;
  /** Characters (code points) of a string, items of an array. */
  readonly minLength?: number;
  readonly maxLength?: number;
  /** A regular expression of JSON Schema: ECMA-262 with the flag u, found anywhere. */
  readonly pattern?: string;
  readonly email?: boolean;
  /** An absolute http or https URL. */
  readonly url?: boolean;
  readonly enum?: readonly (string | number | boolean)[];
}

/** What is asked of each item of an array. */
export interface ItemRules extends Rules {
  readonly type: InputType;
  readonly nullable?: boolean;
  readonly items?: ItemRules;
}

/** The declaration of an input. It is required unless it has a default or `required` is false. */
export interface InputOptions extends Rules {
  /** Its name where it comes from; the field's name unless given. */
  readonly property?: string;
  readonly type?: InputType;
  readonly source?: InputSource;
  readonly required?: boolean;
  readonly nullable?: boolean;
  /** Takes the place of a missing value, never of null. */
  readonly default?: unknown;
  /** The value of an input from the source `static`. */
  readonly value?: unknown;
  readonly description?: string;
  /** A vault's input is secret anyway. */
  readonly secret?: boolean;
  readonly items?: InputType | ItemRules;
  /** Used by tests only; a build takes it out. */
  readonly testValue?: unknown;
}

interface Types {
  string: string;
  number: number;
  integer: number;
  boolean: boolean;
  object: any;
  null: null;
  any: any;
}

type Named<T, I> = T extends 'array' ? ItemsOf<I>[] : T extends keyof Types ? Types[T] : any;
type ItemsOf<I> = I extends InputType
  ? Named<I, unknown>
  : I extends { readonly type: infer T }
    ? Named<T, I extends { readonly items: infer J } ? J : unknown> | NullOf<I>
    : any;
type NullOf<O> = O extends { readonly nullable: true } ? null : never;
type MissingOf<O> = O extends { readonly default: unknown }
  ? never
  : O extends { readonly required: false }
    ? undefined
    : never;
type PlainOf<O> = O extends { readonly enum: readonly (infer E)[] }
  ? E
  : O extends { readonly type: infer T }
    ? Named<T, O extends { readonly items: infer I } ? I : unknown>
    : O extends { readonly source: 'vault' }
      ? string
      : any;

/** The type of the values that a declaration lets through. */
export type ValueOf<O> = PlainOf<O> | NullOf<O> | MissingOf<O>;

type Writable<T> = T extends object ? { -readonly [N in keyof T]: Writable<T[N]> } : T;

interface DoesNotFit<T> {
  readonly 'the field must have this type': T;
}

/** A decorator of a field that can hold a T; standard (TC39) and legacy decorators both work. */
export interface FieldDecorator<T> {
  (target: object, property: string): void;
  <This, V>(
    value: undefined,
    context: ClassFieldDecoratorContext<This, V> & ([T] extends [V] ? unknown : DoesNotFit<T>),
  ): void;
}

/** A decorator of a field that holds a T, null or nothing. */
export interface RuleDecorator<T> {
  (target: object, property: string): void;
  <This, V>(
    value: undefined,
    context: ClassFieldDecoratorContext<This, V> &
      ([NonNullable<V>] extends [T] ? unknown : DoesNotFit<T>),
  ): void;
}

/** Declare an input. The field's type is checked against the declared one. */
export function Input<const O extends InputOptions = {}>(
  options?: O & { readonly [N in Exclude<keyof O, keyof InputOptions>]: never },
): FieldDecorator<ValueOf<O>>;
/** The least number. */
export function Min(least: number): RuleDecorator<number>;
/** The greatest number. */
export function Max(greatest: number): RuleDecorator<number>;
/** The least count of characters (code points) or items. */
export function MinLength(least: number): RuleDecorator<string | readonly any[]>;
/** The greatest count of characters (code points) or items. */
export function MaxLength(greatest: number): RuleDecorator<string | readonly any[]>;
/** A regular expression of JSON Schema (ECMA-262 with the flag u), found anywhere. */
export function Pattern(pattern: string | RegExp): RuleDecorator<string>;
/** An e-mail address, as HTML's forms take it. */
export function Email(): RuleDecorator<string>;
/** An absolute http or https URL. */
export function Url(): RuleDecorator<string>;
/** One of these values. */
export function Enum<const E extends string | number | boolean>(...values: E[]): FieldDecorator<E>;
/** What `flowctl handler test` gives unless told otherwise; a build takes it out. */
export function TestValue<const T>(value: T): FieldDecorator<Writable<T>>;
/** A test value that `flowctl handler test` takes from its own environment. */
export function env(name: string, fallback?: Json): any;

/** What `ctx.success`, `ctx.failure` and `ctx.wait` return; hand it back with `return`. */
export interface Answer {
  readonly [answer]: never;
}
declare const answer: unique symbol;

export interface Log {
  debug(message: unknown, fields?: Readonly<Record<string, unknown>>): void;
  info(message: unknown, fields?: Readonly<Record<string, unknown>>): void;
  warning(message: unknown, fields?: Readonly<Record<string, unknown>>): void;
  warn(message: unknown, fields?: Readonly<Record<string, unknown>>): void;
  error(message: unknown, fields?: Readonly<Record<string, unknown>>): void;
}

export interface FailureOptions {
  readonly retryable?: boolean;
  readonly details?: unknown;
}

export interface WaitOptions {
  readonly durationMs?: number;
  /** ISO 8601 text with a zone, milliseconds since 1970, or a Date. */
  readonly until?: Date | string | number;
  readonly event?: string;
  readonly filter?: Readonly<Record<string, unknown>>;
  readonly reason?: string;
}

/** Everything a handler may ask of the step it runs in. */
export interface Context {
  /** False when the step's selector found nothing; the input is undefined then. */
  readonly hasInput: boolean;
  readonly executionId: string;
  readonly flowId: string;
  readonly stepId: string;
  readonly tenantId: string;
  /** The same however often this attempt is run: an idempotency key. */
  readonly taskId: string;
  /** 0, then 1 for the first retry. */
  readonly attempt: number;
  /** The step's `config` in the flow. */
  readonly config: any;
  /** The execution's context; fetched when it is first read. */
  readonly context: Readonly<Record<string, any>>;
  /** The secrets that the manifest declares; a name that it does not declare throws. */
  readonly secrets: Readonly<Record<string, string>>;
  readonly log: Log;
  /** Publish an event of the execution. */
  emit(event: string, data?: unknown): void;
  /** Set a key of the context; applied only if the handler succeeds. */
  update(key: string, value?: unknown): void;
  success(output?: unknown, options?: { readonly next?: string | null }): Answer;
  failure(code: string, message: string, options?: FailureOptions): Answer;
  failure(code: string, message: string, retryable?: boolean, details?: unknown): Answer;
  wait(options?: WaitOptions): Answer;
}

/** `ctx.checkpoint`: named values that outlive the process and the machine's restarts. */
export interface Checkpoints {
  /** What `save` throws when there is no room; left alone, it is the failure
   * CHECKPOINT_TOO_LARGE. */
  readonly TooLarge: new (message: string) => Error;
  /** Keep a JSON value or bytes under a name ("default"), in the place of what was there.
   * Fulfilled once it is on disk. */
  save(data: unknown, name?: string): Promise<void>;
  /** What was saved last under that name, by this process or one before it; bytes as a Buffer. */
  load<T = any>(name?: string): Promise<T | undefined>;
  load<T = any>(name: string, otherwise: T): Promise<T>;
  /** Forget what is saved under a name, or everything. */
  clear(name?: string): Promise<void>;
  /** The names under which something is saved. */
  names(): string[];
}

export interface PauseOptions {
  /** At most what the manifest says, and that unless given. */
  readonly maxWaitMs?: number | null;
  readonly event?: string | null;
  readonly filter?: Readonly<Record<string, unknown>> | null;
  /** Saved as "default" in the same moment. */
  readonly checkpoint?: unknown;
}

/** `ctx.pause` */
export interface Pauses {
  /** What ended the last pause; null before there was one. */
  readonly by: 'event' | 'hand' | 'time' | null;
  /** Stop, and stop the bill, until the event, a hand or the time; fulfilled with the event's data,
   * undefined if there is none. */
  wait<T = any>(reason: string, options?: PauseOptions): Promise<T | undefined>;
}

/** What a stateful handler is given: all of `Context`, and what lasts. */
export interface StatefulContext extends Context {
  readonly checkpoint: Checkpoints;
  readonly pause: Pauses;
  /** Say how far it is, from 0 to 100; as often as one likes. */
  progress(percent: number, message?: unknown): void;
  /** Whether the execution was cancelled: the process is killed soon. */
  readonly cancelled: boolean;
  /** How much active time is left before it is killed. */
  readonly ttlLeftMs: number;
  /** Whether the end of that time is near. */
  readonly ttlWarned: boolean;
  /** Have more time, up to the manifest's hard ttl; fulfilled with what is left then. */
  extendTtl(ms: number): Promise<number>;
}

/** A handler as a function: `exports.handle = …`; `C` is StatefulContext for a stateful one. */
export type HandlerFunction<I = any, O = unknown, C extends Context = Context> = (
  input: I,
  ctx: C,
) => O | Answer | void | Promise<O | Answer | void>;

/** What a class handler has to have; `ctx` may be a StatefulContext. */
export interface Executable {
  execute(ctx: Context): unknown;
}

export interface HandlerOptions {
  /** For JavaScript: what decorators of fields would declare. */
  readonly inputs?: Readonly<Record<string, InputOptions>>;
  /** JSON Schema of the output. */
  readonly output?: Readonly<Record<string, unknown>>;
}

/**
 * Make a class with `execute(ctx)` a handler: `@Handler()`, or `Handler({ inputs })(class …)`.
 * Each execution has a new instance, with the inputs bound after its constructor has run.
 */
export function Handler(
  options?: HandlerOptions,
): <C extends new () => Executable>(target: C, context?: ClassDecoratorContext<C>) => C;
