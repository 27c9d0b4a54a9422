package raftlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Sync is what a Log must survive.
type Sync uint8

const (
	// None is memory only: every process is a new member.
	None Sync = iota
	// OS survives the death of the process, not of the machine: what is saved was
	// handed to the operating system.
	OS
	// Always survives loss of power: what is saved was synced to disk.
	Always
)

var syncNames = [...]string{None: "none", OS: "os", Always: "always"}

// String is what ParseSync takes.
func (s Sync) String() string {
	if int(s) < len(syncNames) {
		return syncNames[s]
	}
	return fmt.Sprintf("Sync(%d)", uint8(s))
}

// ParseSync is the Sync of that name: none, os or always.
func ParseSync(name string) (Sync, error) {
	for s, n := range syncNames {
		if n == name {
			return Sync(s), nil
		}
	}
	return None, fmt.Errorf("sync is %q: want none, os or always", name)
}

// Identity is who a member is. It goes with the log: where that is lost, so is it.
type Identity struct {
	ID      uint64   // of Raft; never 0, never used by two logs
	Cluster [16]byte // the cluster
	Gen     uint32   // generation of the cluster's data
	Seed    uint64   // keys the hash of keys
	Name    string   // for people; at most 255 bytes
}

func (id *Identity) validate() error {
	if id.ID == 0 {
		return errors.New("raft id is 0: draw another")
	}
	if len(id.Name) > 255 {
		return fmt.Errorf("name of %d bytes: at most 255", len(id.Name))
	}
	return nil
}

// identityFormat is the version of all formats here.
const identityFormat = 1

// maxIdentity bounds an identity file's record.
const maxIdentity = 1 << 10

// charter is the identity file. It is always synced, so that what it says of the
// other files never promises more than they keep.
type charter struct {
	nonce uint64 // of this log: other files with another are not of it
	sync  Sync   // what the other files survive
	boot  string // if sync is OS: the boot of the machine in which all of them were written
	id    Identity
}

func (c *charter) encode() []byte {
	b := make([]byte, headLen, 128)
	b = append(b, identityFormat)
	b = le.AppendUint64(b, c.nonce)
	b = append(b, byte(c.sync))
	b = append(b, byte(len(c.boot)))
	b = append(b, c.boot...)
	b = le.AppendUint64(b, c.id.ID)
	b = append(b, c.id.Cluster[:]...)
	b = le.AppendUint32(b, c.id.Gen)
	b = le.AppendUint64(b, c.id.Seed)
	b = append(b, byte(len(c.id.Name)))
	b = append(b, c.id.Name...)
	seal(b, typeIdentity, seedOf(0, 'i', 0), 0)
	return b
}

// errFormat is not damage: another version can read it.
var errFormat = errors.New("data was written by another version of attune: use that, or another directory")

// decode takes the payload of the identity file's record. Errors: errBad, errFormat.
func (c *charter) decode(b []byte) error {
	if len(b) < 1 {
		return errBad
	}
	if b[0] != identityFormat {
		return errFormat
	}
	if len(b) < 11 || len(b) < 11+int(b[10]) {
		return errBad
	}
	c.nonce, c.sync = le.Uint64(b[1:]), Sync(b[9])
	end := 11 + int(b[10])
	c.boot, b = string(b[11:end]), b[end:]
	if len(b) < 37 || len(b) != 37+int(b[36]) || c.sync != OS && c.sync != Always {
		return errBad
	}
	c.id = Identity{ID: le.Uint64(b), Gen: le.Uint32(b[24:]), Seed: le.Uint64(b[28:]), Name: string(b[37:])}
	copy(c.id.Cluster[:], b[8:])
	if c.id.validate() != nil {
		return errBad
	}
	return nil
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
