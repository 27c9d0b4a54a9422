package ordered

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"github.com/attunekv/attune"
)

// state is what a log prefix makes besides the replica: a pure function of it,
// so equal on all members that applied the same prefix.
type state struct {
	applied uint64         // index of the newest entry applied
	term    uint64         // its term
	time    int64          // the log clock, unix milliseconds: never goes back
	version attune.Version // the newest issued
	flushAt int64          // when a delayed flush_all is due by the log clock; 0 is none
	formed  bool           // the cluster had its first size once: before, nothing is served
	members map[uint64]string
}

const stateFormat = 1

// leastMember is the bytes of a member with the shortest name.
const leastMember = 8 + 1

// encode is s without applied and term, which a snapshot's metadata has.
func (s *state) encode(buf []byte) []byte {
	buf = append(buf, stateFormat)
	buf = binary.LittleEndian.AppendUint64(buf, uint64(s.time))
	buf = binary.LittleEndian.AppendUint64(buf, uint64(s.version))
	buf = binary.LittleEndian.AppendUint64(buf, uint64(s.flushAt))
	if s.formed {
		buf = append(buf, 1)
	} else {
		buf = append(buf, 0)
	}
	buf = binary.AppendUvarint(buf, uint64(len(s.members)))
	for _, id := range slices.Sorted(maps.Keys(s.members)) {
		buf = appendMember(buf, id, s.members[id])
	}
	return buf
}

var errState = errors.New("state of a snapshot cannot be read: it is damaged or of another version")

// decode is the reverse of encode; it returns what follows the state.
func (s *state) decode(data []byte) (rest []byte, err error) {
	if len(data) < 26 || data[0] != stateFormat || data[25] > 1 {
		return nil, errState
	}
	s.time = int64(binary.LittleEndian.Uint64(data[1:]))
	s.version = attune.Version(binary.LittleEndian.Uint64(data[9:]))
	s.flushAt = int64(binary.LittleEndian.Uint64(data[17:]))
	s.formed = data[25] == 1
	n, used := binary.Uvarint(data[26:])
	if used <= 0 || n > uint64(len(data)-26-used)/leastMember {
		return nil, errState
	}
	data = data[26+used:]
	s.members = make(map[uint64]string, n)
	for range n {
		var id uint64
		var name string
		if id, name, data, err = cutMember(data); err != nil {
			return nil, err
		}
		s.members[id] = name
	}
	return data, nil
}

func appendMember(buf []byte, id uint64, name string) []byte {
	buf = binary.LittleEndian.AppendUint64(buf, id)
	buf = append(buf, byte(len(name)))
	return append(buf, name...)
}

// cutMember takes a member off the front of data.
func cutMember(data []byte) (id uint64, name string, rest []byte, err error) {
	if len(data) < leastMember || len(data) < leastMember+int(data[8]) {
		return 0, "", nil, errState
	}
	end := leastMember + int(data[8])
	return binary.LittleEndian.Uint64(data), string(data[leastMember:end]), data[end:], nil
}

// logClock tells the time by the log: the leader stamps every entry with it,
// expiry goes by it, and no wall clock steps it. Between entries it goes on by
// this process's monotonic clock.
type logClock struct {
	time int64 // of the log, at mono
	mono int64 // milliseconds of this process
}

// rebase is how long an anchor is kept, in milliseconds. Of the entries of that
// time the one that came with the least delay sets the clock; after it, the
// difference in pace of two machines' clocks begins to matter.
const rebase = 10_000

func (c *logClock) now(mono int64) int64 { return c.time + mono - c.mono }

// heard anchors the clock to a leader's entry.
func (c *logClock) heard(time, mono int64) {
	if time > c.now(mono) || mono-c.mono > rebase {
		c.time, c.mono = time, mono
	}
}
