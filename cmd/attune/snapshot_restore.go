package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client"
	"github.com/attunekv/attune/internal/snapshot"
)

const (
	// restoreBatch and restoreBytes bound what is sent before replies are read. An
	// item as large as the latter goes alone.
	restoreBatch = 256
	restoreBytes = 64 << 10
	// restorePatience is for how long a cluster may answer with errors that pass.
	restorePatience = 30 * time.Second
	restorePause    = 200 * time.Millisecond
	// mostNamed is how many items that were not taken are named.
	mostNamed = 10
	// longestTTL, in seconds, is the largest that counts from now.
	longestTTL = 60 * 60 * 24 * 30
)

// restorer sends the items of a snapshot to a cluster.
type restorer struct {
	servers     []string
	connections int
	keep        bool
	errs        io.Writer

	mu                       sync.Mutex // guards the rest
	stored, kept, refused    int64
	expired, stale, unfilled int64
}

func newRestoreCommand() *cobra.Command {
	r := &restorer{}
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Store the items of a snapshot in a running cluster",
		Long: `Restore stores all items of a snapshot (- is standard input) through --server, as any
client would: at every level, with every store, beside other clients. What has the same
key is overwritten, or kept with --keep; what is not in the snapshot stays. Items live
as long as they still had to, by the wall clocks of the machine that saved them and of
this one; those that have expired since are left out. So are items that were
invalidated (md with I), and those that a read made for somebody to fill (mg with N).

A file is read twice, first to see that it is whole: nothing is stored of a damaged one.
Standard input is stored as it comes. What was interrupted can be started again.

The exit status is 1 if the server refused items, for their size say: they are named.`,
		Example: `  attune snapshot restore backup.snap --server 10.0.1.1:8000,10.0.1.2:8000
  attune snapshot save - | attune snapshot restore - --server 10.0.1.1:8000`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.connections < 1 {
				return fmt.Errorf("--connections must be at least 1, not %d", r.connections)
			}
			r.errs = cmd.ErrOrStderr()
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return withSnapshot(cmd, args[0], func(in *snapshot.Reader, file *os.File) error {
				return r.restore(ctx, cmd.OutOrStdout(), in, file)
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVarP(&r.servers, "server", "s", []string{"127.0.0.1:8000"}, "controllers, comma-separated, the preferred one first: host:port or unix:/path")
	f.BoolVar(&r.keep, "keep", false, "keep items that are there already")
	f.IntVar(&r.connections, "connections", 4, "connections to store through")
	return cmd
}

func (r *restorer) restore(ctx context.Context, out io.Writer, in *snapshot.Reader, file *os.File) error {
	if file != nil {
		if _, err := survey(in, func(*snapshot.Record) error { return ctx.Err() }); err != nil {
			return fmt.Errorf("nothing was restored: %w", err)
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		var err error
		if in, err = snapshot.NewReader(file); err != nil {
			return err
		}
	}
	err := r.send(ctx, in)
	fmt.Fprintf(out, "restored %d items; kept %d that were there; left out %d expired, %d invalidated, %d never filled; refused %d\n",
		r.stored, r.kept, r.expired, r.stale, r.unfilled, r.refused)
	switch {
	case err != nil:
		return fmt.Errorf("not all was restored; it can be started again: %w", err)
	case r.refused > 0:
		return exitCode(1)
	}
	return nil
}

// send reads items and has them stored, and waits until they are.
func (r *restorer) send(ctx context.Context, in *snapshot.Reader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan *batch)
	var workers sync.WaitGroup
	for range r.connections {
		workers.Go(func() {
			c := client.New(r.servers...)
			defer c.Close()
			c.Timeout = restorePatience
			for b := range batches {
				if err := r.store(ctx, c, b); err != nil {
					cancel(err) // the first counts
				}
			}
		})
	}
	err := r.read(ctx, in, func(b *batch) error {
		select {
		case batches <- b:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(batches)
	workers.Wait()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// batch is requests that are sent together.
type batch struct {
	requests []byte
	ends     []int // of each
	keys     []string
}

// read makes batches of all items.
func (r *restorer) read(ctx context.Context, in *snapshot.Reader, send func(*batch) error) error {
	b := &batch{}
	var rec snapshot.Record
	for {
		err := in.Next(&rec)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		left := int64(0)
		if rec.Expires != 0 {
			left = in.Header.Left(&rec, time.Now().UnixMilli())
		}
		if r.leaveOut(&rec, left) {
			continue
		}
		if n := len(b.ends); n > 0 && (n == restoreBatch || len(b.requests)+len(rec.Value) > restoreBytes) {
			if err := send(b); err != nil {
				return err
			}
			b = &batch{}
		}
		b.add(&rec, left, r.keep)
	}
	if len(b.ends) > 0 {
		return send(b)
	}
	return ctx.Err()
}

// leaveOut counts an item that is not to be restored.
func (r *restorer) leaveOut(rec *snapshot.Record, left int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case rec.Expires != 0 && left <= 0:
		r.expired++
	case rec.Stale:
		r.stale++ // it would come back as good
	case rec.Leased && len(rec.Value) == 0:
		r.unfilled++
	default:
		return false
	}
	return true
}

// add appends the request for an item that has left milliseconds to live.
func (b *batch) add(rec *snapshot.Record, left int64, keep bool) {
	req := append(b.requests, "ms "...)
	binary := false
	for _, c := range rec.Key {
		binary = binary || c <= ' ' || c >= 0x7f
	}
	if binary {
		req = base64.StdEncoding.AppendEncode(req, rec.Key)
	} else {
		req = append(req, rec.Key...)
	}
	req = strconv.AppendInt(append(req, ' '), int64(len(rec.Value)), 10)
	req = strconv.AppendUint(append(req, " F"...), uint64(rec.Flags), 10)
	if rec.Expires != 0 {
		// Rounded up, or the last second would be none.
		ttl := (left + 999) / 1000
		if ttl > longestTTL {
			ttl = (time.Now().UnixMilli() + left + 999) / 1000
		}
		req = strconv.AppendInt(append(req, " T"...), ttl, 10)
	}
	if binary {
		req = append(req, " b"...)
	}
	if keep {
		req = append(req, " ME"...)
	}
	req = append(append(req, "\r\n"...), rec.Value...)
	b.requests = append(req, "\r\n"...)
	b.ends = append(b.ends, len(b.requests))
	b.keys = append(b.keys, string(rec.Key))
}

// store sends a batch until every item is stored or refused for good. To send one
// again does no harm.
func (r *restorer) store(ctx context.Context, c *client.Client, b *batch) error {
	giveUp := time.Now().Add(restorePatience)
	for done, start := 0, 0; done < len(b.ends); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		before := done
		err := c.Raw(ctx, b.requests[start:], func(line, _ []byte) bool {
			r.count(b.keys[done], string(line))
			done++
			return done < len(b.ends)
		})
		if line, refused := client.ErrorLine(err); refused && !passing(line) {
			r.count(b.keys[done], line)
			done++
			err = nil
		}
		if done > 0 {
			start = b.ends[done-1]
		}
		switch {
		case done > before:
			giveUp = time.Now().Add(restorePatience)
		case err != nil && (time.Now().After(giveUp) || !temporary(err)):
			return err
		}
		if err != nil {
			select {
			case <-time.After(restorePause):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// passing reports whether a server may take an item later that it refused with line.
func passing(line string) bool {
	return strings.HasPrefix(line, "SERVER_ERROR") && !strings.Contains(line, "too large") && !strings.Contains(line, "out of memory") ||
		strings.HasPrefix(line, "ERROR Too many")
}

// temporary reports whether the same request may succeed later.
func temporary(err error) bool {
	var lost *client.LostError
	line, refused := client.ErrorLine(err)
	return refused && passing(line) || errors.As(err, &lost) || errors.Is(err, client.ErrUnreachable)
}

// count takes note of what was said to the request for a key.
func (r *restorer) count(key, reply string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case reply == "HD":
		r.stored++
	case reply == "NS" && r.keep:
		r.kept++
	default:
		r.refused++
		if r.refused <= mostNamed {
			fmt.Fprintf(r.errs, "refused: %q: %s\n", key, reply)
		}
	}
}
