package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"reflect"

	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// call is what a request asks for.
type call struct {
	// Method as the API names it: CreateVM_Task.
	method string
	// The object it is asked of.
	this types.ManagedObjectReference
}

// parseCall reads no further into a request than the name of the object it is asked of.
func parseCall(body []byte) (call, error) {
	decoder := xml.NewDecoder(bytes.NewReader(body))
	var c call
	depth, inBody, inThis := 0, false, false
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			return c, fmt.Errorf("no call in the envelope's body")
		}
		if err != nil {
			return c, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			depth++
			switch {
			case depth == 2:
				inBody = t.Name.Local == "Body"
			case depth == 3 && inBody:
				c.method = t.Name.Local
			case depth == 4 && c.method != "" && t.Name.Local == "_this":
				inThis = true
				for _, a := range t.Attr {
					if a.Name.Local == "type" && a.Name.Space == "" {
						c.this.Type = a.Value
					}
				}
			}
		case xml.CharData:
			if inThis {
				c.this.Value += string(t)
			}
		case xml.EndElement:
			depth--
			if inThis || depth == 2 && c.method != "" {
				return c, nil
			}
		}
	}
}

// envelope is a SOAP answer's outside, with the prefixes that vSphere uses.
type envelope struct {
	XMLName xml.Name    `xml:"soapenv:Envelope"`
	Enc     string      `xml:"xmlns:soapenc,attr"`
	Env     string      `xml:"xmlns:soapenv,attr"`
	XSD     string      `xml:"xmlns:xsd,attr"`
	XSI     string      `xml:"xmlns:xsi,attr"`
	Body    interface{} `xml:"soapenv:Body"`
}

// faultBody is a fault in an envelope's body.
type faultBody struct {
	Fault struct {
		XMLName xml.Name `xml:"soapenv:Fault"`
		Code    string   `xml:"faultcode"`
		String  string   `xml:"faultstring"`
		Detail  struct {
			Fault faultDetail
		} `xml:"detail"`
	}
}

// faultDetail becomes an element of the fault's name.
type faultDetail struct {
	fault types.BaseMethodFault
}

func (d faultDetail) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	kind := reflect.TypeOf(d.fault).Elem().Name()
	start.Name.Local = kind + "Fault"
	start.Attr = append(start.Attr,
		xml.Attr{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		xml.Attr{Name: xml.Name{Local: "xsi:type"}, Value: kind})
	return e.EncodeElement(d.fault, start)
}

// writeFault answers with a fault.
func writeFault(w http.ResponseWriter, message string, fault types.BaseMethodFault) {
	var body faultBody
	body.Fault.Code = "ServerFaultCode"
	body.Fault.String = message
	body.Fault.Detail.Fault.fault = fault
	var out bytes.Buffer
	out.WriteString(xml.Header)
	err := xml.NewEncoder(&out).Encode(&envelope{
		Enc:  "http://schemas.xmlsoap.org/soap/encoding/",
		Env:  "http://schemas.xmlsoap.org/soap/envelope/",
		XSD:  "http://www.w3.org/2001/XMLSchema",
		XSI:  "http://www.w3.org/2001/XMLSchema-instance",
		Body: &body,
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = w.Write(out.Bytes())
}

// faultNamed makes an empty fault of a type's name: NotEnoughLicenses.
func faultNamed(name string) (types.BaseMethodFault, error) {
	kind, ok := types.TypeFunc()(name)
	if !ok {
		return nil, fmt.Errorf("the API has no type %q", name)
	}
	fault, ok := reflect.New(kind).Interface().(types.BaseMethodFault)
	if !ok {
		return nil, fmt.Errorf("%q is no fault", name)
	}
	return fault, nil
}

// answer is a response that is not sent yet.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newAnswer() *answer { return &answer{header: make(http.Header), status: http.StatusOK} }

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) { a.status = status }

func (a *answer) Write(data []byte) (int, error) { return a.body.Write(data) }

// send sends it.
func (a *answer) send(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	if a.body.Len() > 0 && w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes())
}
