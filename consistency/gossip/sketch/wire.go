package sketch

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCorrupt: not what [AppendCells] writes.
var ErrCorrupt = errors.New("damaged or foreign cells")

// MaxCellBytes is what one cell takes on the wire, at most.
const MaxCellBytes = 3*8 + binary.MaxVarintLen64

// AppendCells appends cells, the first of which is cell from of a set, to b.
// items is the Count of the set's cell 0; it only makes them short.
func AppendCells(b []byte, from int, items int64, cells []Cell) []byte {
	for i := range cells {
		c := &cells[i]
		b = binary.LittleEndian.AppendUint64(b, c.Key)
		b = binary.LittleEndian.AppendUint64(b, c.Mark)
		b = binary.LittleEndian.AppendUint64(b, c.Sum)
		// Sums of counts wrap around, so no count is out of reach.
		b = binary.AppendVarint(b, c.Count-expected(items, from+i))
	}
	return b
}

// ParseCells reads all of b as the cells that [AppendCells] wrote with the same
// from and items; how many there are, len(b) bounds. It panics unless
// 0 <= from <= [MaxCells]. Errors: [ErrCorrupt].
func ParseCells(b []byte, from int, items int64) ([]Cell, error) {
	if from < 0 || from > MaxCells {
		panic(fmt.Sprintf("sketch: cells from %d", from))
	}
	cells := make([]Cell, 0, len(b)/(3*8+1))
	for len(b) > 0 {
		if len(b) < 3*8 {
			return nil, ErrCorrupt
		}
		c := Cell{
			Key:  binary.LittleEndian.Uint64(b),
			Mark: binary.LittleEndian.Uint64(b[8:]),
			Sum:  binary.LittleEndian.Uint64(b[16:]),
		}
		b = b[3*8:]
		off, n := binary.Varint(b)
		// One cell has one encoding: no zeroes at a number's end.
		if n <= 0 || n > 1 && b[n-1] == 0 {
			return nil, ErrCorrupt
		}
		c.Count = off + expected(items, from+len(cells))
		b = b[n:]
		cells = append(cells, c)
	}
	return cells, nil
}
