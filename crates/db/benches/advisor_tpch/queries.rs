//! The 22 queries of TPC-H with the parameters by which the specification validates an implementation.

use tpchgen::q_and_a::queries::query;

/// By query: its parameters, and how many rows of the answer are wanted (clause 2.4).
const PARAMETERS: [(&[&str], Option<u32>); 22] = [
    (&["90"], None),
    (&["15", "BRASS", "EUROPE"], Some(100)),
    (&["BUILDING", "1995-03-15"], Some(10)),
    (&["1993-07-01"], None),
    (&["ASIA", "1994-01-01"], None),
    (&["1994-01-01", "0.06", "24"], None),
    (&["FRANCE", "GERMANY"], None),
    (&["BRAZIL", "AMERICA", "ECONOMY ANODIZED STEEL"], None),
    (&["green"], None),
    (&["1993-10-01"], Some(20)),
    (&["GERMANY", "FRACTION"], None),
    (&["MAIL", "SHIP", "1994-01-01"], None),
    (&["special", "requests"], None),
    (&["1995-09-01"], None),
    (&["1996-01-01"], None),
    (&["Brand#45", "MEDIUM POLISHED", "49", "14", "23", "45", "19", "3", "36", "9"], None),
    (&["Brand#23", "MED BOX"], None),
    (&["300"], Some(100)),
    (&["Brand#12", "Brand#23", "Brand#34", "1", "10", "20"], None),
    (&["forest", "1994-01-01", "CANADA"], None),
    (&["SAUDI ARABIA"], Some(100)),
    (&["13", "31", "23", "29", "30", "18", "17"], None),
];

/// The specification's variant of query 15 that needs no view.
const Q15: &str = "
with revenue (supplier_no, total_revenue) as (
    select l_suppkey, sum(l_extendedprice * (1 - l_discount))
    from lineitem
    where l_shipdate >= date ':1' and l_shipdate < date ':1' + interval '3' month
    group by l_suppkey
)
select s_suppkey, s_name, s_address, s_phone, total_revenue
from supplier, revenue
where s_suppkey = supplier_no and total_revenue = (select max(total_revenue) from revenue)
order by s_suppkey";

/// The queries, the first at 0.
pub(crate) fn queries(scale: f64) -> Vec<String> {
    let numbered = (1..).zip(PARAMETERS);
    numbered.map(|(number, (parameters, rows))| filled_in(number, parameters, rows, scale)).collect()
}

fn filled_in(number: i32, parameters: &[&str], rows: Option<u32>, scale: f64) -> String {
    let template = if number == 15 { Q15 } else { query(number).unwrap() };
    // PostgreSQL has no precision for days.
    let mut text = template.trim().trim_end_matches(';').replace(" day (3)", " day");
    // From the last one, as `:10` begins with `:1`.
    for (at, parameter) in parameters.iter().enumerate().rev() {
        // The fraction of query 11 shrinks as the data grows.
        let value = parameter.replace("FRACTION", &(0.0001 / scale).to_string());
        text = text.replace(&format!(":{}", at + 1), &value);
    }
    match rows {
        Some(rows) => format!("{text}\nlimit {rows}"),
        None => text,
    }
}
