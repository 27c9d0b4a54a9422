package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcd is a cluster of it. Callers are dealt out to the gRPC connections, and
// these to the members, so that each member gets as many.
type etcd struct {
	o       *options
	clients []*clientv3.Client
	name    string
	value   string
}

func openEtcd(ctx context.Context, o *options) (*etcd, error) {
	e := &etcd{o: o, value: strings.Repeat("x", o.value)}
	for i := range o.channels * len(o.servers) {
		c, err := clientv3.New(clientv3.Config{
			Endpoints:   []string{o.servers[i%len(o.servers)]},
			DialTimeout: o.timeout,
		})
		if err != nil {
			e.close()
			return nil, fmt.Errorf("connect to %s: %w", o.servers[i%len(o.servers)], err)
		}
		e.clients = append(e.clients, c)
	}
	for i, server := range o.servers {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		s, err := e.clients[i].Status(ctx, server)
		cancel()
		if err != nil {
			e.close()
			return nil, fmt.Errorf("status of %s: %w", server, err)
		}
		e.name = s.Version
	}
	return e, nil
}

func (e *etcd) version() string { return e.name }

func (e *etcd) callers() int { return e.o.conns * e.o.pipeline }

func (e *etcd) kinds() []string { return []string{"put", "get", "serializable-get"} }

func (e *etcd) call(ctx context.Context, kind string, caller int, keys []string, record func(time.Time)) error {
	c := e.clients[caller%len(e.clients)]
	for _, key := range keys {
		if err := e.one(ctx, c, kind, key); err != nil {
			return err
		}
		record(time.Now())
	}
	return nil
}

func (e *etcd) one(ctx context.Context, c *clientv3.Client, kind, key string) error {
	ctx, cancel := context.WithTimeout(ctx, e.o.timeout)
	defer cancel()
	if kind == "put" {
		_, err := c.Put(ctx, key, e.value)
		return err
	}
	var how []clientv3.OpOption
	if kind == "serializable-get" {
		how = append(how, clientv3.WithSerializable())
	}
	// A member that is behind may not have a key of the fill yet.
	r, err := c.Get(ctx, key, how...)
	if err == nil && kind == "get" && (len(r.Kvs) != 1 || len(r.Kvs[0].Value) != len(e.value)) {
		return fmt.Errorf("get %s: the value is not the one stored", key)
	}
	return err
}

func (e *etcd) close() {
	for _, c := range e.clients {
		_ = c.Close() // nothing is in flight
	}
}
