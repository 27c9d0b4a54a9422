// Package repair is what replicas do about bytes, which versions are not: bring
// them to a store outside this process without anybody waiting for it (stage.go),
// and get those that a store here has lost from another controller: one (fetch.go), all
// that it lacks (fill.go), or those of a moment (seek.go).
//
// A controller that applies what others decided knows more versions than its store
// has bytes: the store may be slow, restart empty, or evict. That is noticed when
// the bytes are asked for, as their stamp is missing or another one, and mended
// then: by exactly that version, at whoever has it. A durable store is not given up
// on: it may be the only one.
package repair
