package controller

import (
	"crypto/rand"
	"encoding/binary"
)

// randomGen names this life of the store: records of another are not believed.
// A controller without peers and without a data directory forgets its index
// when it stops, so every start is a new generation.
func randomGen() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// randomSeed keys the hash of keys, so that nobody can choose keys that collide.
func randomSeed() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}
