// Package sketch finds the difference of two large sets for the price of the
// difference: two replicas that each hold millions of records, and differ in a
// hundred, learn which hundred from about 150 cells of 26 bytes.
//
// A [Cell] is the XOR of many items, and how many there are. Every item is in
// cell 0, and in cell i with probability 1/(1+i/2), so the cells that follow are
// ever thinner. Subtract the cells of one set from those of another, and what
// both hold is gone; in some cells one item is left, which a checksum shows. Take
// it out of all its cells, and others are left with one. When cell 0 is empty
// everything was found, as everything was in it. There is no size to guess
// beforehand: who could not decode yet asks for the next cells.
//
// These are rateless invertible Bloom lookup tables: Lei Yang, Yossi Gilad,
// Mohammad Alizadeh, "Practical Rateless Set Reconciliation", SIGCOMM 2024,
// arXiv:2402.02668.
//
//	walk.go     which cells an item is in; the checksum and its secret
//	sketch.go   Item, Cell; Sketch: some cells of a set
//	live.go     Live: the first cells of a set, kept while it changes
//	decoder.go  Decoder: from two sets' cells to what only one of them has
//	wire.go     cells as bytes
//
// The cells depend on the set and the cluster's secret alone, not on the peer
// nor on the order of changes. So a replica does not encode when it is asked, it
// keeps the first cells all the time ([Live]), at 0.4 µs per overwritten key and
// less for one that is overwritten often, and two replicas compare without a look
// at their records. Equal cells 0 are equal sets.
//
// One reconciliation: both sides copy their cells of one moment. One sends its
// copy in blocks; the other hands them, with its own, to [Decoder.Add], until
// that says done. A difference that needs more cells than are kept has each side
// fill another [Sketch], of the cells from there on, by walking through its
// records once. What changes meanwhile must be inserted and removed there as well;
// order does not matter.
//
// # What must be the same everywhere
//
// Two builds that place an item differently would find differences for ever. So
// placing is arithmetic that rounds alike on every machine, and golden_test.go
// holds it. On the wire, little endian, no length, no header, cell by cell:
//
//	u64 key | u64 mark | u64 sum | zigzag varint of count - expected
//
// where expected is the sender's number of items, 2*items/(2+i) for cell i.
// That is 25 or 26 bytes a cell, for sets of thousands and of millions.
package sketch
