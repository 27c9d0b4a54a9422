// Package codec is how the members of an ordered cluster write down what they
// tell each other: log entries (entry.go), ops on their way to the leader
// (ops.go), and results on their way back (results.go); wire.go has the numbers
// and strings they are made of.
//
// Numbers are uvarints, signed ones zigzag, and fields that are mostly zero are
// left out, which a bit set in front tells. What is mostly near something that
// is known anyway is written as the distance from it. Each form begins with its
// version.
//
// What is decoded aliases what it is decoded from. No length is believed before
// that many bytes are there, and what cannot be read is an error, never a panic.
// A thing has one encoding: what is accepted is what encoding it again would
// give, so members that compare bytes compare meaning.
package codec
