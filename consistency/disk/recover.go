package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Unproven is why a directory does not prove that it is whole.
type Unproven struct {
	Reason  string
	Damaged bool // and people should look at it
}

func (e *Unproven) Error() string { return e.Reason }

// Damaged is the [Unproven] of what contradicts itself.
func Damaged(format string, args ...any) error {
	return &Unproven{fmt.Sprintf(format, args...), true}
}

// Recover reads the identity file. There is none if the listing is nil. Errors:
// [Unproven]; ErrFormat; those of reading.
func (f *Files) Recover(format Format) (Charter, *Listing, error) {
	l, err := f.list()
	if err != nil {
		return Charter{}, nil, err
	}
	if !l.identity {
		if len(l.Segments)+len(l.States) > 0 {
			f.Log.Warn("there is no identity file, so the other files here are not used", zap.String("dir", f.Dir))
		}
		return Charter{}, nil, nil
	}
	c, err := f.readCharter(format)
	if errors.Is(err, ErrBad) {
		err = Damaged("the identity file: %v", err)
	} else if err == nil && c.Sync == OS && !c.Closed && c.boot != f.BootID {
		err = &Unproven{Reason: "the machine was started again since, and with sync=os what it had not written to disk by then is lost"}
	}
	return c, l, err
}

// Forsake has people told why what is on disk is not used, and moves it aside if it is
// damaged. Any other error than an [Unproven] is returned.
func (f *Files) Forsake(err error) error {
	lost, ok := errors.AsType[*Unproven](err)
	if !ok {
		return err
	}
	f.Log.Error("what is on disk does not prove that it is whole; this controller forgets it, and is a new one to its cluster",
		zap.String("dir", f.Dir), zap.String("why", lost.Reason))
	if !lost.Damaged {
		return nil
	}
	to, err := f.setAside()
	if err == nil {
		f.Log.Error("the damaged files were moved aside", zap.String("to", to))
	}
	return err
}

// setAside moves all files into a directory of their own, and removes an earlier one:
// one is enough to look at, and each may be large. It is not synced: if power is lost
// and files are back, they contradict themselves again.
func (f *Files) setAside() (to string, err error) {
	l, err := f.list()
	if err != nil {
		return "", err
	}
	for _, name := range l.asides {
		if err := os.RemoveAll(f.path(name)); err != nil {
			return "", err
		}
	}
	to = asidePrefix + time.Now().UTC().Format("20060102T150405.000Z")
	if err := os.Mkdir(f.path(to), 0o700); err != nil {
		return "", err
	}
	for _, name := range l.names() {
		if err := f.rename(name, filepath.Join(to, name)); err != nil {
			return "", err
		}
	}
	return f.path(to), nil
}

// RemoveNeedless removes what is in l and neither of these segments and states.
func (f *Files) RemoveNeedless(l *Listing, segments, states []uint64) error {
	needless := Listing{tmps: l.tmps}
	kept := func(all, keep []uint64) []uint64 {
		return slices.DeleteFunc(slices.Clone(all), func(n uint64) bool { return slices.Contains(keep, n) })
	}
	needless.Segments, needless.States = kept(l.Segments, segments), kept(l.States, states)
	for _, name := range needless.names() {
		if err := f.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// Adopt brings a directory with that charter to this Sync, before anything is written
// to it that survives less, or that its end is not the end of.
func (f *Files) Adopt(c *Charter) error {
	if !c.Closed && c.Sync == f.Sync {
		return nil
	}
	if f.Sync == Always && c.Sync == OS && !c.Closed {
		if err := f.SyncAll(); err != nil {
			return err
		}
	}
	c.Sync, c.boot, c.Closed, c.End = f.Sync, f.BootID, false, 0
	return f.WriteCharter(c)
}

// Clear removes everything but what is set aside. The identity goes first, and for
// certain: without it the others are nothing.
func (f *Files) Clear() error {
	if err := f.Remove(identityName); err != nil {
		return err
	}
	if err := f.syncDir(); err != nil {
		return err
	}
	l, err := f.list()
	if err != nil {
		return err
	}
	return f.RemoveNeedless(l, nil, nil)
}
