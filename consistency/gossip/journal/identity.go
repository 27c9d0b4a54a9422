package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Identity is who a memory is. It goes with the journal: where that is lost, so is it.
type Identity struct {
	Origin  uint64   // of updates; never 0, never used by two memories
	Name    string   // for people; at most 255 bytes
	Cluster [16]byte // the cluster
	Gen     uint32   // generation of the cluster's data
	Seed    uint64   // keys the hash of keys
}

func (id *Identity) validate() error {
	if id.Origin == 0 {
		return errors.New("origin is 0: draw another")
	}
	if len(id.Name) > 255 {
		return fmt.Errorf("name of %d bytes: at most 255", len(id.Name))
	}
	return nil
}

const (
	// identityFormat is the version of all formats here. Those with the highest
	// bit are journals; those without, Raft logs.
	identityFormat = 0x81
	// maxIdentity bounds an identity file's record.
	maxIdentity = 1 << 10
	charterLen  = 1 + 8 + 1 + 1 + 8 // up to the boot
	originLen   = 8 + 16 + 4 + 8    // from the boot to the name
)

// charter is the identity file. It is always synced, so that what it says of the
// other files never promises more than they keep.
type charter struct {
	nonce  uint64   // of this memory: other files with another are not of it
	sync   Sync     // what the other files survive
	closed bool     // and until they are written again they survive anything
	end    Position // of the journal, if it is closed; else 0
	boot   string   // if sync is OS: the boot of the machine in which all of them were written
	id     Identity
}

func (c *charter) encode() []byte {
	b := make([]byte, headLen, 128)
	b = append(b, identityFormat)
	b = le.AppendUint64(b, c.nonce)
	b = append(b, byte(c.sync), 0)
	if c.closed {
		b[len(b)-1] = 1
	}
	b = le.AppendUint64(b, uint64(c.end))
	b = append(b, byte(len(c.boot)))
	b = append(b, c.boot...)
	b = le.AppendUint64(b, c.id.Origin)
	b = append(b, c.id.Cluster[:]...)
	b = le.AppendUint32(b, c.id.Gen)
	b = le.AppendUint64(b, c.id.Seed)
	b = append(b, byte(len(c.id.Name)))
	b = append(b, c.id.Name...)
	seal(b, typeIdentity, seedOf(0, 'i', 0), 0)
	return b
}

// errFormat is not damage: somebody else can read it.
var errFormat = errors.New("its data was written by another version of attune, or at another consistency level: use that, or another directory")

// decode takes the payload of the identity file's record. Errors: errBad, errFormat.
func (c *charter) decode(b []byte) error {
	if len(b) < 1 {
		return errBad
	}
	if b[0] != identityFormat {
		return errFormat
	}
	if len(b) < charterLen {
		return errBad
	}
	c.nonce, c.sync = le.Uint64(b[1:]), Sync(b[9])
	c.closed, c.end = b[10] == 1, Position(le.Uint64(b[11:]))
	if c.sync != OS && c.sync != Always || b[10] > 1 || c.end < 0 {
		return errBad
	}
	var ok bool
	if c.boot, b, ok = cutString(b[charterLen:]); !ok || len(b) < originLen {
		return errBad
	}
	c.id = Identity{Origin: le.Uint64(b), Gen: le.Uint32(b[24:]), Seed: le.Uint64(b[28:])}
	copy(c.id.Cluster[:], b[8:])
	if c.id.Name, b, ok = cutString(b[originLen:]); !ok || len(b) > 0 || c.id.validate() != nil {
		return errBad
	}
	return nil
}

// cutString takes a string off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 || len(b)-1 < int(b[0]) {
		return "", nil, false
	}
	end := 1 + int(b[0])
	return string(b[1:end]), b[end:], true
}

// readCharter reads the identity file. Errors: errBad, errFormat, those of reading.
func (f *files) readCharter() (charter, error) {
	var c charter
	file, err := os.Open(f.path(identityName))
	if err != nil {
		return c, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return c, err
	}
	r := newRecords(file, info.Size(), seedOf(0, 'i', 0), maxIdentity)
	typ, payload, err := r.next()
	if err == io.EOF {
		return c, errBad
	}
	if err != nil {
		return c, err
	}
	if typ != typeIdentity || r.at != info.Size() {
		return c, errBad
	}
	return c, c.decode(payload)
}

// writeCharter replaces the identity file, or leaves it as it was, and syncs.
func (f *files) writeCharter(c *charter) error {
	const tmp = identityName + tmpSuffix
	if err := f.remove(tmp); err != nil {
		return err
	}
	file, err := f.create(tmp)
	if err != nil {
		return err
	}
	if err := f.write(file, c.encode()); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := errors.Join(f.sync(file), file.Close()); err != nil {
		return err
	}
	if err := f.rename(tmp, identityName); err != nil {
		return err
	}
	return f.syncDir()
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("this system does not tell its boots apart, so sync=os cannot know what it lost: use sync=always: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
