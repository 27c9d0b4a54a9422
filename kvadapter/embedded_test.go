package kvadapter_test

import (
	"testing"

	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/kvadapter/storetest"
)

func TestEmbeddedConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) kvadapter.Backend {
		b, err := kvadapter.Open("embedded")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}, storetest.Options{})
}
