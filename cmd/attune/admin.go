package main

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/attunekv/attune/client/admin"
)

// adminPatience is how long a controller may take to do what it is told.
const adminPatience = 15 * time.Second

// addAdmin adds the flags that say which controller is asked, and by whom.
func addAdmin(fs *pflag.FlagSet, c *admin.Client, whose string) {
	fs.StringVar(&c.Addr, "admin", orDefault(os.Getenv(envName("admin")), "127.0.0.1:9090"), "admin address "+whose+": host:port or unix:/path")
	addToken(fs, &c.TokenFile)
}

func addToken(fs *pflag.FlagSet, file *string) {
	fs.StringVar(file, "admin-token-file", os.Getenv(envName("admin-token-file")), "file with the admin token, if the controllers have one")
}

// tell has a controller do something, and reads its answer into v, unless that is nil.
func tell(ctx context.Context, c *admin.Client, path string, form url.Values, v any) error {
	ctx, cancel := context.WithTimeout(ctx, adminPatience)
	defer cancel()
	return c.Send(ctx, http.MethodPost, path, form, v)
}
