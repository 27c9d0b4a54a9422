// Package prefetch lets the processor fetch memory while it does other things.
//
// A hash table larger than the caches costs a wait for memory, a tenth of a
// microsecond, at every step of a lookup. One lookup cannot avoid that, but the
// commands of a pipeline are known together: asking for the first step of all of
// them before doing any lets the waits overlap. Plain loads will not do, because
// the lock of the next lookup waits for them; a prefetch is waited for by nobody.
package prefetch
