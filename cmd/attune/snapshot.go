package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client/admin"
	"github.com/attunekv/attune/internal/snapshot"
)

// newSnapshotCommand is `attune snapshot`.
func newSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save all items of a cluster to a file, and restore them",
		Long: `A snapshot is all items of a cluster as they were at one moment, in a file with
checksums: a backup, or a way to another cluster, at another level, with another
store. It has keys, values, flags and expiry; not versions and cas uniques, which
mean something in their cluster only.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newSaveCommand(), newRestoreCommand(), newInspectCommand())
	return cmd
}

func newSaveCommand() *cobra.Command {
	var at admin.Client
	var rate string
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Save all items as they are at one moment",
		Long: `Save asks the controller at --admin for all items as they are at one moment, while
the cluster goes on, and writes them to FILE, or to standard output if FILE is -.
The moment is that of a read of all items, by the level of that controller: at
linearizable, every write that was acknowledged before is in the snapshot.

Checksums are compared as they arrive. FILE appears when all is there and on disk.

What is overwritten before it was sent is kept in the controller's memory until then,
up to 256 MiB; with more than that the save fails. One snapshot at a time can be
saved from a controller. Its store must be able to list its keys, as all can but
memcached before 1.6.9.`,
		Example: `  attune snapshot save backup.snap
  attune snapshot save --admin 10.0.0.2:9090 --rate 20MiB - | zstd > backup.snap.zst`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			var perSecond int64
			if rate != "" {
				var err error
				if perSecond, err = size(rate); err != nil || perSecond < minRate {
					return fmt.Errorf("--rate: want at least %s, such as 20MiB, have %q", humanize.IBytes(minRate), rate)
				}
			}
			return save(ctx, cmd, &at, args[0], perSecond)
		},
	}
	addAdmin(cmd.Flags(), &at, "of the controller to save from")
	cmd.Flags().StringVar(&rate, "rate", "", "take at most so many bytes per second (default: no limit)")
	return cmd
}

// minRate keeps the controller from giving us up.
const minRate = 64 << 10

// interruptible is ctx until the first signal; a second one ends the process.
func interruptible(ctx context.Context) (context.Context, func()) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func save(ctx context.Context, cmd *cobra.Command, at *admin.Client, file string, rate int64) error {
	body, err := at.Get(ctx, "/snapshot", nil)
	if err != nil {
		return err
	}
	defer body.Close()
	var from io.Reader = body
	if rate > 0 {
		from = &slowReader{ctx: ctx, r: from, rate: rate}
	}
	out := cmd.OutOrStdout()
	if file == "-" {
		sum, err := check(from, out)
		if err == nil {
			sum.warn(cmd.ErrOrStderr())
		}
		return err
	}
	// Beside FILE, so that it can take its name; with a random one, as two may do this.
	temp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*.part")
	if err != nil {
		return err
	}
	sum, err := check(from, temp)
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("nothing was saved: %w", err), os.Remove(temp.Name()))
	}
	if err := syncDir(filepath.Dir(file)); err != nil {
		return fmt.Errorf("saved, but may be gone after a loss of power: %w", err)
	}
	fmt.Fprintf(out, "saved %d items, %s\n", sum.items, humanize.IBytes(uint64(sum.file)))
	sum.warn(cmd.ErrOrStderr())
	return nil
}

// syncDir makes it last which files are in a directory.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // it cannot be done there, and the file system sees to it
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// warn says what is not in a snapshot.
func (sum *contents) warn(errs io.Writer) {
	if sum.missing > 0 {
		fmt.Fprintf(errs, "%d items are not in it: that controller knows of them, and neither its store nor another controller had them when it asked.\n", sum.missing)
	}
}

// check copies a snapshot, and fails if it is not whole. What came of it is copied all
// the same: whoever reads it finds the reason at its end.
func check(from io.Reader, to io.Writer) (sum *contents, err error) {
	buffered := bufio.NewWriterSize(to, 256<<10)
	in, err := snapshot.NewReader(io.TeeReader(from, buffered))
	if err == nil {
		sum, err = survey(in, func(*snapshot.Record) error { return nil })
	}
	return sum, errors.Join(err, buffered.Flush())
}

// slowReader reads at most rate bytes per second.
type slowReader struct {
	ctx   context.Context
	r     io.Reader
	rate  int64
	began time.Time
	n     int64
}

func (s *slowReader) Read(b []byte) (int, error) {
	if s.began.IsZero() {
		s.began = time.Now()
	}
	n, err := s.r.Read(b[:min(int64(len(b)), max(s.rate/10, 1))])
	s.n += int64(n)
	due := time.Duration(float64(s.n) / float64(s.rate) * float64(time.Second))
	select {
	case <-time.After(due - time.Since(s.began)):
	case <-s.ctx.Done():
		return n, context.Cause(s.ctx)
	}
	return n, err
}

// contents is what there is to say about a snapshot.
type contents struct {
	items, bytes, file int64 // bytes are those of keys and values
	expiring, expired  int64
	stale              int64
	missing            int64
	biggest            []biggest // first the biggest
}

type biggest struct {
	key  string
	size int
}

// mostBiggest is how many of the biggest items are shown.
const mostBiggest = 10

// survey reads a snapshot to its end, which must be that of a whole one.
func survey(in *snapshot.Reader, each func(*snapshot.Record) error) (*contents, error) {
	sum := &contents{}
	now := time.Now().UnixMilli()
	var rec snapshot.Record
	for {
		err := in.Next(&rec)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = each(&rec)
		}
		if err != nil {
			return sum, err
		}
		sum.add(in, &rec, now)
	}
	sum.file, sum.missing = in.Offset(), in.Summary().Missing
	return sum, nil
}

func (sum *contents) add(in *snapshot.Reader, rec *snapshot.Record, now int64) {
	sum.items++
	sum.bytes += int64(len(rec.Key) + len(rec.Value))
	if rec.Stale {
		sum.stale++
	}
	if rec.Expires != 0 {
		sum.expiring++
		if in.Header.Left(rec, now) <= 0 {
			sum.expired++
		}
	}
	n := len(sum.biggest)
	if n == mostBiggest && len(rec.Value) <= sum.biggest[n-1].size {
		return
	}
	at, _ := slices.BinarySearchFunc(sum.biggest, len(rec.Value), func(b biggest, size int) int { return cmp.Compare(size, b.size) })
	sum.biggest = slices.Insert(sum.biggest, at, biggest{string(rec.Key), len(rec.Value)})
	sum.biggest = sum.biggest[:min(n+1, mostBiggest)]
}

func newInspectCommand() *cobra.Command {
	var list bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what is in a snapshot, and whether it is whole",
		Long: `Inspect reads a snapshot (- is standard input), compares its checksums and shows
what is in it. It needs no cluster. The exit status is 0 if the snapshot is whole.

With --list it prints a line per item instead: the key, quoted as in Go, the
length of the value, the flags, the expiry in unix milliseconds (0: never), and
stale if it was invalidated; separated by tabs, in no order.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withSnapshot(cmd, args[0], func(in *snapshot.Reader, _ *os.File) error {
				if list {
					return listItems(cmd.OutOrStdout(), in)
				}
				return inspect(cmd.OutOrStdout(), in)
			})
		},
	}
	cmd.Flags().BoolVar(&list, "list", false, "print all items, a line each")
	return cmd
}

// withSnapshot opens a snapshot. file is nil if it cannot be read twice.
func withSnapshot(cmd *cobra.Command, name string, fn func(in *snapshot.Reader, file *os.File) error) error {
	from := cmd.InOrStdin()
	var file *os.File
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		from = f
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			file = f
		}
	}
	in, err := snapshot.NewReader(from)
	if err == nil {
		err = fn(in, file)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func inspect(w io.Writer, in *snapshot.Reader) error {
	sum, err := survey(in, func(*snapshot.Record) error { return nil })
	if err != nil {
		return err
	}
	h := &in.Header
	fmt.Fprintf(w, "of %s, %s, at %s, by attune %s\n", h.Node, h.Level, time.UnixMilli(h.Time).UTC().Format(time.RFC3339), h.Software)
	fmt.Fprintf(w, "items %d, of %d bytes (keys and values); the file %d bytes\n", sum.items, sum.bytes, sum.file)
	fmt.Fprintf(w, "expiring %d, of which %d have expired by now; invalidated %d; missing %d\n", sum.expiring, sum.expired, sum.stale, sum.missing)
	for _, b := range sum.biggest {
		fmt.Fprintf(w, "big: %d bytes, %q\n", b.size, b.key)
	}
	_, err = fmt.Fprintln(w, "the snapshot is whole")
	return err
}

func listItems(w io.Writer, in *snapshot.Reader) error {
	out := bufio.NewWriter(w)
	var line []byte
	_, err := survey(in, func(rec *snapshot.Record) error {
		expires := rec.Expires
		if expires != 0 {
			expires += in.Header.Time - in.Header.Clock
		}
		line = strconv.AppendQuote(line[:0], string(rec.Key))
		line = fmt.Appendf(line, "\t%d\t%d\t%d", len(rec.Value), rec.Flags, expires)
		if rec.Stale {
			line = append(line, "\tstale"...)
		}
		_, err := out.Write(append(line, '\n'))
		return err
	})
	return errors.Join(err, out.Flush())
}
