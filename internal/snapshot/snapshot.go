package snapshot

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// format is what this version of the software writes, and the only one it reads.
const format = 1

// magic begins a file.
const (
	magic     = "attune snapshot "
	firstLine = magic + "1\n"
)

// Kinds of blocks.
const (
	kindHeader  = 'h'
	kindRecords = 'r'
	kindEnd     = 'e'
	kindFailed  = 'x'
)

const (
	// blockSize is what a block of records has at least, but for the last one.
	blockSize = 64 << 10
	maxText   = 64 << 10 // of a block that is no records
	// MaxKey and MaxValue are the longest that a record may have, in bytes.
	MaxKey   = 250
	MaxValue = 128 << 20

	headLen  = 5 // of a block
	sumLen   = 4
	fixedLen = 1 + 1 + 4 + 8 + 4 // of a record
	maxBlock = blockSize + fixedLen + MaxKey + MaxValue
)

// States of an item.
const (
	stateStale  = 1 << 0
	stateLeased = 1 << 1
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Sentinel errors of a Reader. They come with the place in the file and the reason.
var (
	// ErrNone is returned for what does not begin as a snapshot does.
	ErrNone = errors.New("not a snapshot of attune")
	// ErrFormat is returned for a snapshot of another format. A release of attune as
	// old, or as new, as the one that wrote it can read it.
	ErrFormat = errors.New("a snapshot of another format")
	// ErrCorrupt is returned for bytes that no Writer wrote, or that changed since.
	// Nothing from there on can be used.
	ErrCorrupt = errors.New("damaged")
	// ErrCutOff is returned for a file that ends too early.
	ErrCutOff = errors.New("cut off")
	// ErrFailed is returned for a file whose writer gave up, and says why.
	ErrFailed = errors.New("was not finished")
)

// Header says what a snapshot is of.
type Header struct {
	Node  string `json:"node"`  // controller that saved it
	Level string `json:"level"` // its consistency level
	// Clock and Time are the moment by the clock of the cluster, and by the wall clock
	// of the controller, in unix milliseconds.
	Clock    int64  `json:"clock"`
	Time     int64  `json:"time"`
	Software string `json:"software"` // release of attune
}

// Left is how many milliseconds an item that expires has still to live at now, in unix
// milliseconds by the wall clock of this machine, if that and the one of the
// controller that saved it are right. It is 0 or less for an item that has expired.
func (h *Header) Left(rec *Record, now int64) int64 {
	return rec.Expires - h.Clock - (now - h.Time)
}

// Summary is at the end of a snapshot.
type Summary struct {
	Records int64 `json:"records"`
	// Missing is how many items the controller knew of, and neither had the bytes of nor
	// found another that did: they are not in the snapshot. With a store outside the
	// controller an estimate.
	Missing int64 `json:"missing"`
}

// Record is an item.
type Record struct {
	Key, Value []byte
	Flags      uint32
	Expires    int64 // unix milliseconds by the cluster's clock; 0 is never
	Stale      bool  // invalidated: served, and said to be old
	Leased     bool  // somebody was told to refresh it
}
